"""What a data source is: samples that can be read by index, or a stream of batches."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from nncompress.data.normalization import Normalization
from nncompress.data.stored_rows import StoredRows
from nncompress.errors import DataError
from nncompress.memory import installed

MOST_COMPRESSION = 1032  # deflate cannot do better than 1032 : 1
PIECE = 2**22  # numbers of an array that are looked at together

Raw = tuple[tuple[np.ndarray, ...], np.ndarray | None]  # inputs [N, ...] each, labels [N, ...]


@dataclass(frozen=True)
class Field:
    """One input as the source holds it: its name, dtype, and the shape of one sample."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@runtime_checkable
class Source(Protocol):
    """Samples readable by index."""

    fields: tuple[Field, ...]
    has_labels: bool
    class_names: tuple[str, ...] | None
    normalization: Normalization | None  # what the file itself asks for

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Raw:
        """The samples at `indices`, in that order."""
        ...


@runtime_checkable
class StreamSource(Protocol):
    """Batches in an order of the source's own; each call of `stream` starts over."""

    fields: tuple[Field, ...]
    has_labels: bool
    class_names: tuple[str, ...] | None
    normalization: Normalization | None

    def stream(self) -> Iterator[Raw]: ...


class ArraySource:
    """Samples held as arrays, or in a file, one row each.

    Args:
        inputs: name → array [N, ...].
        labels: class indices [N] (any integer dtype), targets [N, ...] (floating), or None.
        shared: names of inputs that all samples share: one array, without a dim for samples.
        origin: what to call the source in errors.
    Raises:
        DataError: no samples, lengths that differ, negative labels, NaN or infinity in a sample.
    """

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray | StoredRows],
        labels: np.ndarray | StoredRows | None,
        *,
        origin: str,
        class_names: tuple[str, ...] | None = None,
        normalization: Normalization | None = None,
        shared: Collection[str] = (),
    ) -> None:
        of_samples = {name: array for name, array in inputs.items() if name not in shared}
        for name, array in of_samples.items():
            if array.ndim == 0:
                raise DataError(
                    f"{origin}: {name} is a single number",
                    expected="an array whose first dimension is samples",
                )
            if math.prod(array.shape[1:]) == 0:
                raise DataError(
                    f"{origin}: the samples of {name} are empty", got=f"{name} of shape {list(array.shape)}"
                )
        lengths = {name: len(array) for name, array in of_samples.items()}
        first = next(iter(lengths))
        for name, length in lengths.items():
            if length != lengths[first]:
                raise DataError(
                    f"{origin}: {name} and {first} have different numbers of samples",
                    got=f"{length} and {lengths[first]}",
                    expected="one row per sample in every array",
                )
        if lengths[first] == 0:
            raise DataError(f"{origin} holds no samples", got=f"{first} of shape {inputs[first].shape}")
        for name, array in inputs.items():
            check_finite(array if name in of_samples else np.asarray(array)[None], name, origin, mask=True)
        self._labels = None if labels is None else _Labels(labels, lengths[first], origin)
        self.classes = None if self._labels is None else self._labels.classes
        if self._labels is not None and class_names is not None and (self.classes or 0) > len(class_names):
            raise DataError(
                f"{origin}: sample {self._labels.sample_of_last_class} has a label that names no class",
                got=f"label {(self.classes or 0) - 1}",
                expected=f"0 to {len(class_names) - 1} ({len(class_names)} classes)",
            )
        self._inputs, self._length = inputs, lengths[first]
        self._shared = frozenset(shared)
        self.fields = tuple(
            Field(name, str(a.dtype), a.shape[1:] if name in of_samples else a.shape)
            for name, a in inputs.items()
        )
        self.has_labels = labels is not None
        self.class_names = class_names
        self.normalization = normalization

    def __len__(self) -> int:
        return self._length

    def read(self, indices: np.ndarray) -> Raw:
        labels = None if self._labels is None else self._labels[indices]
        inputs = (a if name in self._shared else a[indices] for name, a in self._inputs.items())
        return tuple(inputs), labels  # type: ignore[arg-type]  # what is shared is in memory


class _Labels:
    """Labels in memory or, one array per sample, in a file; checked, as `check_labels` gives them.

    Attributes:
        classes: one more than the greatest class; None for targets.
        sample_of_last_class: the first that has it.

    Raises:
        DataError: as `check_labels`.
    """

    def __init__(self, labels: np.ndarray | StoredRows, samples: int, origin: str) -> None:
        self._origin = origin
        self.classes: int | None = None
        self.sample_of_last_class = 0
        if isinstance(labels, np.ndarray) or len(labels) != samples:
            labels = check_labels(labels[:] if isinstance(labels, StoredRows) else labels, samples, origin)
        self._labels = labels
        for start, piece in _pieces(labels):
            piece = self._checked(piece, start)
            if piece.dtype.kind == "f":
                continue
            classes = int(piece.max(initial=-1)) + 1
            if self.classes is None or classes > self.classes:
                self.classes = classes
                self.sample_of_last_class = start + int(np.argmax(piece == classes - 1)) // (
                    piece[:1].size or 1
                )

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        return self._checked(self._labels[samples], 0)

    def _checked(self, labels: np.ndarray, first_sample: int) -> np.ndarray:
        if isinstance(self._labels, np.ndarray):  # checked already
            return labels
        return check_labels(labels, len(labels), self._origin, first_sample)


def _pieces(array: np.ndarray | StoredRows) -> Iterator[tuple[int, np.ndarray]]:
    """An array [N, ...] in pieces of bounded size, each with the number of its first sample."""
    rows = max(1, PIECE // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def check_finite(
    array: np.ndarray | StoredRows, name: str, origin: str, first_sample: int = 0, *, mask: bool = False
) -> None:
    """Refuse NaN and infinity in array [N, ...], naming the sample.

    Args:
        mask: it may hold -inf, as masks that are added to scores do.

    Raises:
        DataError: naming the first such sample, counted from `first_sample`.
    """
    if array.dtype.kind != "f":
        return
    for start, piece in _pieces(array):
        finite = np.isfinite(piece) | (mask & (piece == -np.inf))
        if not finite.all():
            row = int(np.argmin(finite.reshape(len(piece), -1).all(axis=1)))
            kind = "NaN" if np.isnan(piece[row]).any() else "infinity"
            raise DataError(
                f"{origin}: sample {first_sample + start + row} of {name} holds {kind}",
                expected="finite numbers",
                remedy="remove or repair that sample",
            )


def check_labels(labels: np.ndarray, samples: int, origin: str, first_sample: int = 0) -> np.ndarray:
    """Labels as int64 classes [N], or float32 targets [N, ...].

    Raises:
        DataError: their number, dtype or values make no sense.
    """
    if labels.ndim == 0 or len(labels) != samples:
        raise DataError(
            f"{origin}: the number of labels differs from the number of samples",
            got=f"{labels.size if labels.ndim == 0 else len(labels)} labels for {samples} samples",
            expected="one label per sample",
        )
    if labels.dtype.kind in "bui":
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        # compared as Python integers: numpy compares uint64 with int64 as floats
        least = 0 if labels.ndim == 1 else -(2**63)  # of pixels and tokens some may be left out
        if labels.size and not least <= int(labels.min()) <= int(labels.max()) < 2**63:
            negative = int(labels.min()) < least
            wrong = labels < 0 if negative else labels >= np.uint64(2**63)
            fault = "a negative" if negative else "too large a"
            sample = int(np.argmax(wrong.reshape(samples, -1).any(axis=1)))
            raise DataError(
                f"{origin}: sample {first_sample + sample} has {fault} label",
                got=str(labels.min() if negative else labels.max()),
                expected="class indices from 0, below 2^63",
            )
        return labels.astype(np.int64)
    if labels.dtype.kind == "f":
        check_finite(labels, "the labels", origin, first_sample)
        with np.errstate(over="ignore"):
            targets = labels.astype(np.float32)
        check_finite(targets, "the labels, as float32,", origin, first_sample)
        return targets
    raise DataError(
        f"{origin}: the labels are neither classes nor targets",
        got=f"dtype {labels.dtype}",
        expected="integers (class indices) or floating-point targets",
        remedy="number the classes 0, 1, 2 ... in alphabetical order",
    )


def native(array: np.ndarray) -> np.ndarray:
    """The same numbers as torch takes them: in this machine's byte order, and no longer than 64 bits."""
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return array.astype(np.float64) if array.dtype == np.longdouble and array.itemsize > 8 else array


def check_allocation(size: int, what: str) -> None:
    """Refuse what a header claims before memory is given to it.

    Args:
        size: bytes the header asks for.
    Raises:
        DataError: `size` is more than this machine's memory.
    """
    memory = installed()
    if size > memory:
        raise DataError(
            f"{what} needs more memory than this machine has",
            got=f"{size / 2**30:.1f} GiB asked for, {memory / 2**30:.1f} GiB here",
            remedy="give the data as a folder of images or a package.module:function, which are streamed",
        )
