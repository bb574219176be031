"""Several .npz files as one source: a folder of them, or a pattern such as `train-*.npz`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nncompress.data.fit import ExpectedInput
from nncompress.data.source import ArraySource, Raw
from nncompress.data.sources.npz import open_npz
from nncompress.errors import DataError


class Shards:
    """The samples of several sources, one after the other.

    Raises:
        DataError: their samples differ in form, or only some have labels.
    """

    def __init__(self, sources: Sequence[ArraySource], origins: Sequence[str]) -> None:
        first = sources[0]
        for source, origin in zip(sources, origins):
            for what, own, others in (
                ("inputs", source.fields, first.fields),
                ("labels", source.has_labels, first.has_labels),
                ("normalisation", source.normalization, first.normalization),
            ):
                if own != others:
                    raise DataError(
                        f"{origin} has other {what} than {origins[0]}", got=str(own), expected=str(others)
                    )
        classes = [source.classes for source in sources]
        self._sources = list(sources)
        self._starts = np.cumsum([0, *map(len, sources)])
        self.fields, self.has_labels = first.fields, first.has_labels
        self.class_names, self.normalization = first.class_names, first.normalization
        self.classes = max((c for c in classes if c is not None), default=None)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> Raw:
        """The samples at `indices`, in that order."""
        of = np.searchsorted(self._starts, indices, side="right") - 1
        order = np.argsort(of, kind="stable")
        parts = [
            self._sources[number].read(indices[of == number] - self._starts[number])
            for number in np.unique(of)
        ]
        back = np.empty(len(indices), np.int64)
        back[order] = np.arange(len(indices))
        inputs = tuple(np.concatenate(each)[back] for each in zip(*(inputs for inputs, _ in parts)))
        if not self.has_labels:
            return inputs, None
        return inputs, np.concatenate([np.asarray(labels) for _, labels in parts])[back]


def open_shards(
    paths: Sequence[Path], expected: list[ExpectedInput] | None, called: Sequence[str] = ()
) -> ArraySource | Shards:
    """The samples of these archives, in the order of their names.

    Raises:
        DataError: one cannot be read, or they do not fit together.
    """
    sources = [open_npz(path, expected, called) for path in paths]
    if len(sources) == 1:
        return sources[0]
    if expected is not None and any(e.batch_dim is None for e in expected):
        raise DataError(
            f"{paths[0].parent}: inputs that all samples share cannot lie in several files",
            remedy="write one .npz",
        )
    return Shards(sources, [str(path) for path in paths])
