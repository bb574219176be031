"""Columns that pyarrow reads: `.parquet`, and the Arrow files of the datasets library, batch after batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncompress.data.source import check_allocation
from nncompress.errors import DataError
from nncompress.extras import need
from nncompress.files.bounded_text import Unreadable, check_regular

if TYPE_CHECKING:
    import pyarrow

ROWS, FEW_ROWS = 1024, 16  # of a batch, and of one with pictures or sounds
Batches = Iterator["pyarrow.RecordBatch"]


def open_parquet(path: Path) -> tuple[list[str], Batches]:
    """The names of the columns of one file, or of all that a pattern names, and their batches.

    Raises:
        DataError: one cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    need("parquet", str(path))
    from pyarrow import parquet

    parts = [path] if path.exists() else sorted(path.parent.glob(path.name))
    for part in parts:
        check_file(part, ".parquet")
    try:
        files = [parquet.ParquetFile(part, read_dictionary=_text_columns(part)) for part in parts]
        names = list(files[0].schema_arrow.names)
        groups = [file.metadata.row_group(at) for file in files for at in range(file.num_row_groups)]
        values = sum(group.column(c).num_values for group in groups for c in range(group.num_columns))
    except Exception as problem:  # pyarrow's own
        raise _unread(path, problem) from problem
    rows = FEW_ROWS if any(holds_files(field.type) for field in files[0].schema_arrow) else ROWS
    check_allocation(8 * values, str(path))  # a value that is repeated takes no bytes in the file

    def batches() -> Batches:
        try:
            for file in files:
                yield from file.iter_batches(rows)
        except Exception as problem:
            raise _unread(path, problem) from problem

    return names, batches()


def _unread(path: Path, problem: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read as .parquet",
        got=str(problem)[:300],
        expected="a whole file, as pandas, pyarrow or the datasets library write it",
        remedy="write or copy it again",
    )


def open_streams(files: Sequence[Path]) -> tuple[list[str], Batches]:
    """The names of the columns of Arrow streams, and their batches.

    Raises:
        DataError: one cannot be read, or they are more than this machine's memory.
        MissingExtraError: pyarrow is not installed.
    """
    need("parquet", str(files[0]))
    import pyarrow

    for file in files:
        check_file(file, "Arrow")

    def read() -> Iterator[Any]:
        """Of each file its schema, then its batches."""
        for file in files:
            try:
                with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
                    yield reader.schema
                    for batch in reader:
                        batch.validate(full=True)
                        yield from (batch.slice(at, ROWS) for at in range(0, len(batch), ROWS))
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as problem:
                raise DataError(f"{file} cannot be read as Arrow", got=str(problem)[:300]) from problem

    def batches() -> Batches:
        held = 0
        for batch in read():
            if isinstance(batch, pyarrow.RecordBatch):
                held += 8 * len(batch) * batch.num_columns  # or compressed
                held += sum((1 if holds_files(c.type) else 8) * c.nbytes for c in batch.columns)
                check_allocation(held, str(files[0].parent))
                yield batch

    return list(next(read()).names), batches()


def rows_of(batches: Batches) -> Iterator[tuple[int, dict[str, Any]]]:
    """Samples one by one, with their numbers from 1."""
    number = 0
    for batch in batches:
        for values in zip(*map(values_of, batch.columns), strict=True):
            number += 1
            yield number, dict(zip(batch.schema.names, values, strict=True))


def values_of(column: Any) -> list[Any]:
    """The values of a column; equal texts are one object where the file holds them once.

    Raises:
        DataError: Python has no such value: a day of the year 10^9, a text that is not UTF-8.
    """
    try:
        if not hasattr(column, "dictionary"):
            return list(column.to_pylist())
        words = column.dictionary.to_pylist()
        return [None if at is None else words[at] for at in column.indices.to_pylist()]
    except Exception as problem:
        raise DataError(f"values of type {column.type} cannot be read", got=str(problem)[:300]) from problem


def numbers_of(column: Any) -> np.ndarray | None:
    """A column of numbers [N], or of lists of one length [N, length], at once; None where it is neither."""
    import pyarrow

    kind = column.type
    if column.null_count:
        return None
    if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if (
        pyarrow.types.is_list(kind)
        or pyarrow.types.is_large_list(kind)
        or pyarrow.types.is_fixed_size_list(kind)
    ):
        lengths = set(column.value_lengths().to_pylist()) if len(column) else {0}
        inside = numbers_of(column.flatten())
        if len(lengths) == 1 and inside is not None and math.prod(inside.shape) and inside.ndim == 1:
            return inside.reshape(len(column), lengths.pop())
    return None


def holds_files(kind: Any) -> bool:
    """Whether values of this type of pyarrow are bytes, or {"bytes": …, "path": …}."""
    from pyarrow import types

    if types.is_struct(kind):
        return {kind.field(at).name for at in range(kind.num_fields)} == {"bytes", "path"}
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def check_file(path: Path, kind: str) -> None:
    """Refuse what is no regular file: of a FIFO, no end would come.

    Raises:
        DataError: it is none.
    """
    try:
        check_regular(path)
    except Unreadable as problem:
        raise DataError(f"{path} cannot be read as {kind}", got=str(problem)) from problem


def _text_columns(path: Path) -> list[str]:
    """Those whose values are to stay what the file holds once: a text of 1 MB for a million samples."""
    from pyarrow import parquet

    schema = parquet.read_schema(path)
    leaves = parquet.read_metadata(path).schema
    texts = {
        leaves.column(at).path for at in range(len(leaves)) if leaves.column(at).physical_type == "BYTE_ARRAY"
    }
    return [name for name in schema.names if name in texts]
