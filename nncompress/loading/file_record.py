"""What nncompress itself writes into a model file, read with suspicion: history, metadata, input ranges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncompress.errors import ModelFileError
from nncompress.ir import InputSpec
from nncompress.loading.json_schema import Check, Rejected, listed, one_of, optional, plain, record

_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def _anything(value: Any) -> Any:
    return value  # JSON, shown to the user and written back, never interpreted


def _size(value: Any) -> int | str:
    return plain(str, str.isidentifier)(value) if type(value) is str else plain(int)(value)


_INPUT = record(
    name=plain(str, str.isidentifier),
    dtype=one_of(*_DTYPES),
    shape=listed(_size),
    low=optional(plain(int), 0),
    high=optional(plain(int), 2),
)
_RECORD = record(
    schema=optional(one_of(1)),
    inputs=optional(listed(_INPUT), []),
    outputs=optional(listed(plain(str)), []),
    dynamic=_anything,  # torch keeps the bounds, too
    history=optional(listed(plain(dict)), []),
    metadata=optional(plain(dict), {}),
)


@dataclass(frozen=True)
class FileRecord:
    """As `nncompress.export` wrote it; empty for a file from elsewhere."""

    inputs: tuple[InputSpec, ...] | None = None
    outputs: tuple[str, ...] = ()
    history: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def read_record(content: Mapping[str, Any], path: Path) -> FileRecord:
    """The content of `nncompress.json`.

    Raises:
        ModelFileError: it is not what nncompress writes.
    """
    plain_record = _checked(_RECORD, dict(content), path)
    inputs = tuple(InputSpec(**{**item, "shape": tuple(item["shape"])}) for item in plain_record["inputs"])
    return FileRecord(
        inputs or None, tuple(plain_record["outputs"]), plain_record["history"], plain_record["metadata"]
    )


def read_header(header: Mapping[str, str], path: Path) -> FileRecord:
    """History and metadata in the header of a `.safetensors` that nncompress wrote; others have none.

    Raises:
        ModelFileError: they are not what nncompress writes.
    """
    found = {}
    for key in ("history", "metadata"):
        try:
            found[key] = json.loads(header[key])
        except (KeyError, ValueError, RecursionError):  # some other tool's header
            continue
    if not isinstance(found.get("history", []), list) or not isinstance(found.get("metadata", {}), dict):
        return FileRecord()
    return read_record(found, path)


def _checked(check: Check, content: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        return check(content)
    except Rejected as rejected:
        raise ModelFileError(
            f"the record of nncompress in {path} is damaged", got=str(rejected), remedy="save the model again"
        ) from rejected
