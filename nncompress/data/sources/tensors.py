"""`.pt`, `.pth`: tensors that `torch.save` wrote: one, `(x, y)`, or a dict with names as in an .npz."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nncompress.data.fit import ExpectedInput
from nncompress.data.kind import Kind
from nncompress.data.source import ArraySource
from nncompress.data.sources.npz import LABEL_NAMES, input_names
from nncompress.data.sources.python import PythonStream, open_memory
from nncompress.errors import DataError
from nncompress.files.pickle_scan import scan_file

MOST_REPEATED = 2**27  # bytes
EXPECTED = 'torch.save({"x": x, "y": y}, file), (x, y), or a tensor'


def open_tensors(
    path: Path, expected: list[ExpectedInput] | None, called: Sequence[str] = ()
) -> ArraySource | PythonStream:
    """The tensors of a file, which runs no code.

    Raises:
        DataError: it is damaged, needs code to load, or holds something else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                    raise ValueError("compressed members, which torch.save does not write")
        scan_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # a malformed pickle fails in every way
        reason = next((line.strip() for line in str(problem).splitlines() if line.strip()), "")
        raise DataError(
            f"{path} cannot be read as tensors", got=reason[:300], expected=EXPECTED, remedy="save them anew"
        ) from problem
    if isinstance(found, dict):
        tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
        names = input_names([name for name in tensors if isinstance(name, str)], expected, path, called)
        label = next((tensors[name] for name in LABEL_NAMES if name in tensors and name not in names), None)
        found = (tuple(tensors[name] for name in names), label)
    _check_repeated(found, path)
    if not _holds_tensors(found):
        raise DataError(f"{path} holds no tensors", got=type(found).__name__, expected=EXPECTED)
    return open_memory(tuple(found) if isinstance(found, list) else found, expected)


def _check_repeated(found: Any, path: Path) -> None:
    """Refuse tensors that are much more than the file holds of them: a number with a stride of 0."""
    size = _size(found)
    if size > path.stat().st_size + MOST_REPEATED:
        raise DataError(
            f"{path} repeats what it holds",
            got=f"tensors of {size} bytes in a file of {path.stat().st_size}",
            remedy="save them with .contiguous()",
        )


def _size(found: Any) -> int:
    if isinstance(found, tuple | list):
        return sum(map(_size, found))
    return found.nbytes if isinstance(found, torch.Tensor) and found.layout == torch.strided else 0


def _holds_tensors(found: Any) -> bool:
    if isinstance(found, torch.Tensor):
        plain = found.layout == torch.strided and not found.is_quantized and not found.is_nested
        return plain and found.device.type == "cpu"
    return isinstance(found, tuple | list) and all(part is None or _holds_tensors(part) for part in found)


KIND = Kind(
    ".pt of tensors",
    lambda asked: asked.file is not None and asked.path.endswith((".pt", ".pth")),
    lambda asked: open_tensors(Path(asked.path), asked.expected, asked.names),
)
