"""`.csv`, `.tsv`, `.jsonl`, `.parquet`: columns of a table as inputs and labels.

    table.csv?x=a,b,c&y=kind                three numbers a sample, and its class
    table.jsonl?x=tokens&y=kind             a list a sample
    table.parquet?ids=tokens&mask=seen      the columns of two inputs, called ids and mask
    table.csv?text=review&tokenizer=DIR     token ids: `nncompress.data.sources.texts`

Without `y` the labels are the column y, label, labels, target or targets; without inputs they are the columns
of their names, else x is all other columns. Labels that are text are numbered in alphabetical order.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nncompress.data.fit import ExpectedInput
from nncompress.data.source import ArraySource, check_allocation
from nncompress.data.sources.arrow import Batches, numbers_of, open_parquet, rows_of, values_of
from nncompress.data.sources.npz import LABEL_NAMES
from nncompress.data.sources.saved_datasets import class_names_of, open_arrow
from nncompress.errors import DataError
from nncompress.files.bounded_text import Unreadable, parse_json

EXACT = 2**53  # up to which a number of eight bytes holds every integer
MOST_LINE = 2**24  # bytes of one line
MOST_LABEL = 1000  # characters
TEXTS = (".csv", ".tsv", ".jsonl")
LINES, LINE = ".txt", "text"  # a file of lines, and what the column of these is called
SUFFIXES = (*TEXTS, ".parquet")
Rows = Iterator[tuple[int, dict[str, Any]]]  # samples, with their line or number


def open_table(path: Path, options: dict[str, str], expected: list[ExpectedInput] | None) -> ArraySource:
    """The samples of a table, in memory as numbers.

    Args:
        options: `y` and inputs by name, as columns joined by commas.

    Raises:
        DataError: it cannot be read, has no such column, or a value is no number.
        MissingExtraError: pyarrow is not installed, for .parquet.
    """
    rows: Rows = iter(())
    batches: Batches = iter(())
    if path.suffix in TEXTS:
        names, rows = open_rows(path)
        check_allocation(
            8 * path.stat().st_size, str(path)
        )  # "1,1,1": four bytes of text for one of a number
    else:
        names, batches = _open_batches(path)
    label, inputs = _chosen(names, options, expected, path)
    wanted = [*dict.fromkeys(c for columns in inputs.values() for c in columns), *([label] if label else [])]
    columns: dict[str, Column] = {name: Column(name, path, text=name == label) for name in wanted}
    try:
        for place, row in rows:
            for name, column in columns.items():
                column.add(row.get(name), place)
        place = 1
        for batch in batches:
            missing = [name for name in columns if name not in batch.schema.names]
            if missing:
                raise DataError(
                    f"{path}: a part of the table has no column {missing[0]!r}",
                    got=", ".join(batch.schema.names)[:300],
                    expected="the same columns in every part",
                )
            for name, column in columns.items():
                column.extend(batch.column(name), place)
            place += len(batch)
    except (OSError, csv.Error, UnicodeDecodeError) as problem:
        raise DataError(f"{path} cannot be read", got=str(problem)[:300]) from problem
    kinds = {e.name: e for e in expected or ()}
    arrays = {}
    for position, (name, chosen) in enumerate(inputs.items()):
        one = kinds.get(name) or (expected[position] if expected and position < len(expected) else None)
        arrays[name] = _input([columns[c] for c in chosen], one, path)
    labels, classes = columns[label].labels() if label else (None, None)
    if label and classes is None:
        classes = class_names_of(path, label)
    return ArraySource(arrays, labels, origin=str(path), class_names=classes)


def _chosen(
    names: list[str], options: dict[str, str], expected: list[ExpectedInput] | None, path: Path
) -> tuple[str | None, dict[str, list[str]]]:
    """The column of the labels, and those of each input."""
    options = dict(options)
    label = options.pop("y", None) or next((n for n in LABEL_NAMES if n in names), None)
    inputs = {name: columns.split(",") for name, columns in options.items()}
    if not inputs and expected and all(e.name in names and e.name != label for e in expected):
        inputs = {e.name: [e.name] for e in expected}
    inputs = inputs or {"x": [name for name in names if name != label]}
    asked = [*(c for columns in inputs.values() for c in columns), *([label] if label else [])]
    check_named(asked, names, path)
    if not all(inputs.values()):
        raise DataError(f"{path} has no column beside the labels", got=", ".join(names)[:300])
    return label, inputs


def check_named(columns: list[str], names: list[str], path: Path) -> None:
    """Refuse a column that the table does not have.

    Raises:
        DataError: naming those that it has.
    """
    if not names:
        raise DataError(f"{path} has no columns", expected="a column for each input of a sample")
    known = set(names)
    if unknown := [column for column in columns if column not in known]:
        raise DataError(
            f"{path} has no column {unknown[0]!r}",
            got=", ".join(names)[:300],
            remedy=f"{path.name}?x={','.join(names[:-1][:3]) or 'a,b'}&y={names[-1]}",
        )


# --- files ------------------------------------------------------------------------------------------------


def open_rows(path: Path) -> tuple[list[str], Rows]:
    """The names of its columns, and its samples.

    Raises:
        DataError: it cannot be read, or holds none.
        MissingExtraError: pyarrow is not installed, for .parquet and .arrow.
    """
    readers = {".jsonl": _json_lines, LINES: _plain_lines}
    if path.suffix not in (*TEXTS, LINES):
        names, batches = _open_batches(path)
        return names, rows_of(batches)
    rows = readers.get(path.suffix, _separated)(path)
    try:
        first = next(rows, None)
    except (OSError, csv.Error, UnicodeDecodeError) as problem:
        raise DataError(f"{path} cannot be read", got=str(problem)[:300]) from problem
    if first is None:
        raise DataError(f"{path} holds no samples")
    return list(first[1]), _with(first, rows)


def _open_batches(path: Path) -> tuple[list[str], Batches]:
    names, batches = open_parquet(path) if path.suffix == ".parquet" else open_arrow(path)
    _check_distinct(names, path)
    return names, batches


def _check_distinct(names: list[str], path: Path) -> None:
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two columns of one name", got=", ".join(names)[:300])


def _with(first: tuple[int, dict[str, Any]], rest: Rows) -> Rows:
    yield first
    yield from rest


def _separated(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_lines(file.readline, path), delimiter="\t" if path.suffix == ".tsv" else ",")
        names = [name.strip() for name in next(reader, [])]
        if names and all(map(_is_number, names)):
            raise DataError(
                f"{path} has no line with the names of its columns",
                got=", ".join(names)[:100],
                remedy="write one: a,b,c,label",
            )
        _check_distinct(names, path)
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{path}: line {reader.line_num} has another number of values",
                    got=str(len(row)),
                    expected=str(len(names)),
                )
            yield reader.line_num, dict(zip(names, row))


def _json_lines(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_lines(file.readline, path), 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except Unreadable as problem:
                raise DataError(
                    f"{path}: line {number} is no JSON", got=str(problem), expected='{"x": …, "y": …}'
                ) from problem
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}: line {number} is no object", got=line[:60].strip(), expected='{"x": …, "y": …}'
                )
            yield number, row


def _plain_lines(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_lines(file.readline, path), 1):
            if line.strip():
                yield number, {LINE: line.rstrip("\r\n")}


def _lines(read: Callable[[int], str], path: Path) -> Iterator[str]:
    while line := read(MOST_LINE):
        if len(line) >= MOST_LINE:
            raise DataError(f"{path} has a line of more than {MOST_LINE} characters")
        yield line


# --- columns ----------------------------------------------------------------------------------------------


class Column:
    """The values of a column: numbers eight bytes each, lists as arrays of one shape.

    Args:
        text: it holds labels, which may be text.
    """

    def __init__(self, name: str, path: Path, *, text: bool) -> None:
        self._name, self._path, self._text = name, path, text
        self.shape: tuple[int, ...] | None = None
        self.whole = True  # all are integers
        self._values = array("d")
        self._words: list[str] = []

    def extend(self, values: Any, place: int) -> None:
        """Add those of a column of pyarrow, the first of which is at `place`."""
        numbers = numbers_of(values)
        if numbers is None or self.shape not in (None, numbers.shape[1:]) or not _is_exact(numbers):
            for at, value in enumerate(values_of(values), place):  # which says what is wrong where
                self.add(value, at)
            return
        self.shape = numbers.shape[1:]
        self.whole &= _is_whole(numbers)
        self._values.frombytes(np.ascontiguousarray(numbers, np.float64).tobytes())

    def add(self, value: Any, place: int) -> None:
        if self._text and isinstance(value, str) and len(value) > MOST_LABEL:
            raise self._wrong(place, "is too long for a label", f"{len(value)} characters")
        if self._text and isinstance(value, str) and not _is_number(value):
            self._words.append(value)
            return
        try:
            found = np.asarray(_parsed(value) if isinstance(value, str) else value)
            if found.dtype.kind not in "biuf":
                raise ValueError
        except (TypeError, ValueError):
            raise self._wrong(place, "is no number", repr(value)[:80]) from None
        if not found.size:
            raise self._wrong(place, "is empty", repr(value)[:80])
        if not _is_exact(found):
            raise self._wrong(place, "is beyond 2^53", repr(value)[:80])
        if self.shape is None:
            self.shape = found.shape
        if found.shape != self.shape:
            raise self._wrong(place, "has another shape than before", f"{found.shape}, {self.shape} before")
        self.whole &= _is_whole(found)
        self.whole &= not (isinstance(value, str) and "." in value)
        self._values.extend(found.ravel().tolist())

    def _wrong(self, place: int, what: str, got: str) -> DataError:
        unit = "line" if self._path.suffix in TEXTS else "sample"
        return DataError(
            f"{self._path}: {self._name} {what} in {unit} {place}",
            got=got,
            remedy=f"{self._path.name}?x=…&y=… names the columns that are meant; --tokenizer DIR takes texts",
        )

    def numbers(self) -> np.ndarray:
        """float64 [N, ...]."""
        return np.frombuffer(self._values, np.float64).reshape(-1, *(self.shape or ()))

    def labels(self) -> tuple[np.ndarray, tuple[str, ...] | None]:
        """Classes or targets, and the names of the classes where they are text."""
        if not self._words:
            numbers = self.numbers()
            return (numbers.astype(np.int64) if self.whole else numbers.astype(np.float32)), None
        if len(self._values):
            raise DataError(
                f"{self._path}: {self._name} holds text and numbers", got=f"such as {self._words[0]!r:.60}"
            )
        names = sorted(set(self._words))
        if len(names) == len(self._words) > 1:
            raise DataError(
                f"{self._path}: every sample has another text in {self._name}, so it is no class",
                got=", ".join(names[:3])[:200],
                remedy=f"{self._path.name}?y=… names the column of the labels",
            )
        number = {name: index for index, name in enumerate(names)}
        return np.array([number[word] for word in self._words]), tuple(names)


def _is_exact(found: np.ndarray) -> bool:
    """Integers that a float64 holds; any other numbers."""
    if found.dtype.kind not in "iu" or not found.size:
        return True
    return -EXACT <= int(found.min()) <= int(found.max()) <= EXACT


def _is_whole(found: np.ndarray) -> bool:
    if found.dtype.kind != "f":
        return True
    found = found.astype(np.float64, copy=False)
    return bool(((found == np.trunc(found)) & (np.abs(found) <= EXACT)).all())  # else another integer


def _input(columns: Sequence[Column], expected: ExpectedInput | None, path: Path) -> np.ndarray:
    """One input [N, ...]: of the dtype that the model takes, numbers of several columns side by side."""
    if len(columns) == 1:
        found = columns[0].numbers()
    elif any(column.shape for column in columns):
        raise DataError(
            f"{path}: several columns of lists are no one input",
            remedy=f"an input each: {path.name}?first=a&second=b",
        )
    else:
        found = np.stack([column.numbers() for column in columns], axis=1)
    wanted = None
    if expected is not None:
        wanted = tuple(size for dim, size in enumerate(expected.shape) if dim != expected.batch_dim)
    if found.ndim == 1 and wanted != ():
        found = found[:, None]
    sizes = [size for size in wanted or () if isinstance(size, int)]
    if wanted and len(sizes) == len(wanted) and found.ndim == 2 and math.prod(sizes) == found.shape[1]:
        found = found.reshape(-1, *sizes)  # an image as a row of its pixels
    listed = path.suffix != ".csv" and path.suffix != ".tsv"
    integers = all(column.whole for column in columns) and (
        not expected.dtype.startswith(("float", "bfloat")) if expected is not None else listed
    )
    with np.errstate(over="ignore"):  # infinity is told of the sample
        return found.astype(np.int64 if integers else np.float32)


def _parsed(text: str) -> float | int:
    """An integer as one, so that it is not rounded unseen."""
    return int(text) if len(text) < 32 and text.strip().lstrip("+-").isdecimal() else float(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
