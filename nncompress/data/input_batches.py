"""A data set's inputs batch by batch, again and again, without holding them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from torch import Tensor

Inputs = tuple[Tensor, ...]


class InputBatches(Sequence[Inputs]):
    """Batches that are read anew each time they are asked for, the same each time.

    Args:
        read: the inputs of batch number 0, 1, ….
        numbers: which of them, in order.
    """

    def __init__(self, read: Callable[[int], Inputs], numbers: Sequence[int]) -> None:
        self._read, self._numbers = read, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Inputs: ...
    @overload
    def __getitem__(self, index: slice) -> InputBatches: ...
    def __getitem__(self, index: int | slice) -> Inputs | InputBatches:
        if isinstance(index, slice):
            return InputBatches(self._read, self._numbers[index])
        return self._read(self._numbers[index])

    def each(self, change: Callable[[Inputs], Inputs]) -> InputBatches:
        """What `change` makes of every batch, whenever it is read."""
        return InputBatches(lambda number: change(self._read(number)), self._numbers)

    @classmethod
    def held(cls, batches: Sequence[Inputs]) -> InputBatches:
        """Batches that are in memory already."""
        return cls(batches.__getitem__, range(len(batches)))
