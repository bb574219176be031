"""Samples held out from fitting, so that what is measured on them was not learnt from them.

Both parts are the same at every call and for every model: a second pass, or a second command, does not fit
to what the first one was measured on. Samples readable by index are held out evenly over the data, which is
often ordered by class; those of a stream by a checksum of the sample, since a stream may shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

import numpy as np

from nncompress.data.source import Raw, Source, StreamSource
from nncompress.errors import DataError

MOST = 64  # samples held out; a relative distance of outputs is then known to a few percent of itself
ONE_IN = 5  # at most this share
FEWEST = 8  # up to so many samples, all are needed for fitting
HALVES = 20261129  # seed of the halves: never to be changed, recipes refer to them
LOOK = 256  # batches of a stream that are looked at for some of either part


def hold_out(
    source: Source | StreamSource, fixed_batch: int | None
) -> tuple[Source | StreamSource, Source | StreamSource | None]:
    """The samples to fit to, and those held out, or None where there are at most `FEWEST` (or, of a model
    with a fixed batch, less than two batches)."""
    if not isinstance(source, Source):
        return _split_stream(source, fixed_batch or 1)
    unit = fixed_batch or 1
    units = len(source) // unit
    if len(source) <= FEWEST or units < 2:
        return source, None
    count = max(1, min(MOST // unit, units // ONE_IN))
    step = units / count
    held = ((np.arange(count) + 0.5) * step).astype(np.int64)
    samples = (held[:, None] * unit + np.arange(unit)).ravel()
    return Selection(source, np.setdiff1d(np.arange(len(source)), samples)), Selection(source, samples)


def half_of(source: Source | StreamSource, half: str, spec: str) -> Selection:
    """One of the two halves of a source, drawn at random by a seed that is always the same.

    Args:
        half: "1" or "2".

    Raises:
        DataError: there is no such half, there are not two samples, or they cannot be read by index.
    """
    if half not in ("1", "2"):
        raise DataError(f"{spec}: there is no such half", got=f"half={half}", expected="half=1 or half=2")
    if not isinstance(source, Source):
        raise DataError(
            f"{spec}: a stream cannot be halved",
            expected="samples that can be read by index",
            remedy="save them as a .npz file, or return (x, y) arrays",
        )
    if len(source) < 2:
        raise DataError(f"{spec} cannot be halved", got=f"{len(source)} sample", expected="at least 2")
    order = np.random.default_rng(HALVES).permutation(len(source))
    middle = len(order) // 2
    return Selection(source, np.sort(order[:middle] if half == "1" else order[middle:]))


class Selection:
    """Some samples of a source.

    Args:
        indices: int64 [N], which.
    """

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices
        self.fields, self.has_labels = source.fields, source.has_labels
        self.class_names, self.normalization = source.class_names, source.normalization
        self.classes = getattr(source, "classes", None)
        self.vocabulary = getattr(source, "vocabulary", None)
        self.notes = getattr(source, "notes", ())

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: np.ndarray) -> Raw:
        """The samples at these positions of the selection."""
        return self._source.read(self._indices[indices])


class StreamSelection:
    """The samples of a stream that are held out, or all others.

    Args:
        held: which of the two.
        most: end after so many samples.
    """

    def __init__(self, source: StreamSource, *, held: bool, most: int | None = None) -> None:
        self._source, self._held, self._most = source, held, most
        self.fields, self.has_labels = source.fields, source.has_labels
        self.class_names, self.normalization = source.class_names, source.normalization
        self.classes = getattr(source, "classes", None)

    def stream(self) -> Iterator[Raw]:
        """Its batches, without the samples that are not selected."""
        left = self._most
        for inputs, labels in self._source.stream():
            chosen = np.flatnonzero(_held(inputs) == self._held)[:left]
            if len(chosen):
                yield tuple(x[chosen] for x in inputs), None if labels is None else labels[chosen]
            if left is not None:
                left -= len(chosen)
                if not left:
                    return


def _held(inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """Which samples of a batch are held out, bool [N]."""
    sums = np.zeros(len(inputs[0]), dtype=np.int64)
    for x in inputs:
        sums = np.array([crc32(np.ascontiguousarray(row).tobytes(), int(seed)) for row, seed in zip(x, sums)])
    return sums % ONE_IN == 0


def _split_stream(
    source: StreamSource, unit: int
) -> tuple[Source | StreamSource, Source | StreamSource | None]:
    """By a look at its first samples: does each part get a batch?"""
    fitted = held = 0
    for inputs, _ in source.stream():
        which = _held(inputs)
        held, fitted = held + int(which.sum()), fitted + int((~which).sum())
        if held + fitted > FEWEST and min(held, fitted) >= unit:
            most = MOST // unit * unit or unit
            return StreamSelection(source, held=False), StreamSelection(source, held=True, most=most)
        if held + fitted >= LOOK * unit:
            break
    return source, None
