"""A data set in memory, as criteria take it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nncompress.data import Batch
from nncompress.data.input_batches import InputBatches


class Whole:
    """Records of which none are held out."""

    def split(self) -> tuple[Whole, None]:
        return self, None

    def planned_samples(self, limit: int | None = None) -> int | None:
        return limit

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        raise NotImplementedError

    def measuring_batch(self, batch_size: int) -> int:
        return batch_size

    def input_batches(self, batch_size: int, limit: int | None = None) -> InputBatches:
        return InputBatches.held([batch.inputs for batch in self.batches(batch_size, limit)])


class Records(Whole):
    """Inputs and labels; without labels where `labels` is None."""

    spec = "records in memory"
    classes = None
    fixed_batch = None

    def __init__(self, inputs: tuple[Tensor, ...], labels: Tensor | None = None) -> None:
        self._inputs, self._labels = inputs, labels
        self.has_labels = labels is not None

    def require_labels(self, purpose: str, remedy: str = "") -> None:
        assert self.has_labels, purpose

    def planned_samples(self, limit: int | None = None) -> int:
        return len(self._inputs[0]) if limit is None else min(limit, len(self._inputs[0]))

    def batches(
        self, batch_size: int, limit: int | None = None, shuffle_seed: int | None = None
    ) -> Iterator[Batch]:
        total = self.planned_samples(limit)
        for start in range(0, total, batch_size):
            part = slice(start, min(start + batch_size, total))
            labels = None if self._labels is None else self._labels[part]
            yield Batch(tuple(x[part] for x in self._inputs), labels)


def images(count: int, classes: int | None = 5, size: int = 8, seed: int = 3) -> Records:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, size, size, generator=generator)
    y = None if classes is None else torch.randint(0, classes, (count,), generator=generator)
    return Records((x,), y)
