"""Whether nncompress wrote a file that is there already: told from the record that it puts into each."""

from __future__ import annotations

import mmap
from pathlib import Path

from nncompress.files.bounded_text import Unreadable, check_regular

# Names that stand uncompressed in the file: of a member in the zip's directory, of a metadata property, in
# the record of a program, in a header.
_MARKS = {
    ".pt2": b"/extra/nncompress.json",
    ".pte": b'"nncompress": "',
    ".safetensors": b'"nncompress.version":',
}
_MARKS |= dict.fromkeys((".onnx", ".ort", ".xml"), b"nncompress.version")


def is_ours(path: Path) -> bool:
    """Whether nncompress wrote the model's file; files of other kinds are never said to be ours."""
    mark = _MARKS.get(path.suffix.lower())
    try:
        if check_regular(path) == 0 or mark is None:
            return False
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            first = path.suffix.lower() == ".safetensors"  # where the header comes before the weights
            return (content.find(mark) if first else content.rfind(mark)) >= 0
    except (Unreadable, OSError):
        return False
