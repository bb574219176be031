"""Records of ours as JSON files: written whole, and read back before they are put in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nncompress.errors import VerificationError
from nncompress.files.atomic import replacing
from nncompress.files.bounded_text import MOST_BYTES, Unreadable, read_json


def write_json(path: Path, value: Any, *, indent: int | None = 1, most_bytes: int = MOST_BYTES) -> None:
    """Replace `path` by `value`, as `read_json` gives it back.

    Args:
        most_bytes: its reader's bound.

    Raises:
        OutputError: it cannot be written.
        VerificationError: as `put_json`.
    """
    with replacing(path) as temporary:
        put_json(temporary, value, indent=indent, most_bytes=most_bytes)


def put_json(file: Path, value: Any, *, indent: int | None = 1, most_bytes: int = MOST_BYTES) -> None:
    """Write `value` to a new file, and read it back.

    Raises:
        VerificationError: the next command would refuse it, or read something else.
    """
    text = json.dumps(value, indent=indent)
    file.write_text(text + "\n", encoding="utf-8")
    try:
        same = json.dumps(read_json(file, most_bytes), indent=indent) == text  # as text: NaN is itself there
        found = "other values"
    except Unreadable as error:
        same, found = False, str(error)
    if not same:
        raise VerificationError(
            f"{file.name} is not kept: it could not be read back",
            got=found,
            remedy="this is a defect of nncompress; please report it",
        )
