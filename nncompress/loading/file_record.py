"""What nncompress itself writes into a model file, read with suspicion: history, metadata, input ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from nncompress.data.normalization import parse_normalization
from nncompress.dtypes import INPUTS
from nncompress.errors import DataError, ModelFileError
from nncompress.files.bounded_text import Unreadable, parse_json
from nncompress.ir import InputSpec
from nncompress.ir.graph.inputs import SHARED, is_dim_name
from nncompress.loading.json_schema import (
    Check,
    Rejected,
    any_json,
    listed,
    mapped,
    one_of,
    optional,
    plain,
    record,
    shown,
    table_with,
)

_NAME = plain(str, str.isidentifier)
_DIM = plain(str, is_dim_name)
_INTEGER = plain(int, lambda value: -(2**31) <= value <= 2**31)
_FINITE = plain(float, isfinite)


def _size(value: Any) -> int | str:
    return _DIM(value) if type(value) is str else _INTEGER(value)


_INPUT = record(
    name=_NAME,
    dtype=one_of(*INPUTS),
    shape=listed(_size),
    low=optional(_INTEGER, 0),
    high=optional(_INTEGER, 2),
    like=optional(listed(listed(_FINITE)), []),
    fixed_dim=optional(plain(int, lambda value: SHARED <= value < 64), 0),
)
_COUNT = plain(int, lambda value: 0 <= value < 2**63)
_COSTS = table_with(macs=optional(_COUNT))


def _normalization(value: Any) -> str:
    text: str = plain(str, lambda text: len(text) < 10_000)(value)
    try:
        parse_normalization(text)
    except DataError as error:
        raise Rejected(f"{shown(text)} is no normalisation") from error
    return text


# what one pass did, as it was recorded; read: the name, the settings, the MACs
_STEP = table_with(
    **{"pass": plain(str, lambda name: 0 < len(name) < 100)},
    settings=table_with(),
    before=_COSTS,
    after=_COSTS,
)
_RECORD = record(
    schema=optional(one_of(1)),
    inputs=optional(listed(_INPUT), []),
    outputs=optional(listed(plain(str)), []),
    dynamic=any_json,  # torch keeps the bounds, too
    history=optional(listed(_STEP), []),
    metadata=optional(
        table_with(
            normalize=optional(_normalization),
            detection_head=optional(listed(plain(str))),
            input_names=mapped(plain(str), plain(str)),
            batch_name=optional(_DIM),
            constants=optional(listed(plain(str)), []),
            sizes=mapped(plain(str), plain(int, lambda size: 0 < size < 2**31)),
        ),
        {},
    ),
)


@dataclass(frozen=True)
class FileRecord:
    """As `nncompress.exporting` wrote it; empty for a file from elsewhere."""

    inputs: tuple[InputSpec, ...] | None = None
    outputs: tuple[str, ...] = ()
    history: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def passes(self) -> list[str]:
        """Each that it went through, once."""
        return list(dict.fromkeys(step["pass"] for step in self.history))


def read_record(
    content: Mapping[str, Any], path: Path, shapes: Sequence[Sequence[Any]] | None = None
) -> FileRecord:
    """The content of `nncompress.json`; its inputs must have the ranks of the program's `shapes`.

    Raises:
        ModelFileError: it is not what nncompress writes.
    """
    plain_record = _checked(_RECORD, dict(content), path)
    if not all("pass" in step for step in plain_record["history"]):
        raise damaged(path, "a step of its history that names no pass")
    inputs = tuple(InputSpec.from_json(item) for item in plain_record["inputs"])
    for spec, item in zip(inputs, plain_record["inputs"]):
        moments = item["like"]
        channels = spec.shape[1] if len(spec.shape) > 1 else None
        if any(len(pair) != 2 or pair[1] < 0 for pair in moments) or len(moments) not in (0, 1, channels):
            raise damaged(path, f"moments of {spec.name} that fit none of its channels")
    if inputs and shapes is not None and [len(i.shape) for i in inputs] != [len(shape) for shape in shapes]:
        raise damaged(path, f"inputs {', '.join(map(str, inputs))}, which the program does not have")
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
            found[key] = parse_json(header[key])
        except (KeyError, Unreadable):  # some other tool's header
            continue
    history, metadata = found.get("history", []), found.get("metadata", {})
    if not isinstance(history, list) or not isinstance(metadata, dict):
        return FileRecord()
    if not all(isinstance(step, dict) and "pass" in step for step in history):
        return FileRecord()
    return read_record(found, path)


def _checked(check: Check, content: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        return check(content)
    except Rejected as rejected:
        raise damaged(path, str(rejected)) from rejected


def damaged(path: Path, what: str) -> ModelFileError:
    """For a record, or samples beside it, that nncompress does not write."""
    return ModelFileError(
        f"the record of nncompress in {path} is damaged", got=what, remedy="save the model again"
    )
