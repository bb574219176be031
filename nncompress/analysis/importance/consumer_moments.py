"""Second moments of what layers read, streamed: those that memory has no room for are in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import torch
from torch import Tensor

from nncompress.analysis.importance.choices import Choice, Consumer, Indices
from nncompress.analysis.observe.moments import Moments
from nncompress.analysis.observe.patches import input_rows
from nncompress.analysis.observe.shelf import Shelf, Slot, moments_in_runs
from nncompress.ir.layers.weights import Layer

POSITIONS = 64  # of a layer, drawn per sample
LARGEST = 6144  # columns of a layer; beyond that, columns of different units are taken as independent


@dataclass
class ConsumerMoments:
    """Moments at one layer.

    Attributes:
        columns: None for all moments [in, in]; or `[units, k]`: only those within the columns of a unit.
        generator: draws positions; its own, so that passes may be cut anywhere.
    """

    layer: Layer
    columns: Indices | None
    generator: torch.Generator
    moments: Moments = field(default_factory=Moments)

    def add(self, read: Tensor) -> None:
        rows = input_rows(self.layer, read.detach(), POSITIONS * len(read), self.generator)
        self.moments.add(rows if self.columns is None else rows[0][:, self.columns].transpose(0, 1))

    @property
    def covariance(self) -> Tensor:
        """float64 `[in, in]`, or `[units, k, k]` where only those are known."""
        return self.moments.covariance[0] if self.columns is None else self.moments.covariance

    def mean(self) -> Tensor:
        """float64 `[in]`; zero where nothing is known."""
        if self.columns is None:
            return self.moments.mean[0]
        mean = torch.zeros(_inputs(self.layer), dtype=torch.float64)
        mean[torch.from_numpy(self.columns)] = self.moments.mean
        return mean


def key(choice: Choice, consumer: Consumer) -> str:
    """What a choice's consumer shares moments by: its layer, unless blocks by unit are all that is kept."""
    layer = consumer.layer
    return layer.name if _inputs(layer) <= LARGEST else f"{layer.name} of {choice.name}"


def moments_of_consumers(
    choices: Sequence[Choice], seed: int, *, filed: bool = False
) -> dict[str, ConsumerMoments]:
    """No moments yet, of all that the consumers of these choices read.

    Args:
        filed: beyond the budget they go to a file.
    """
    found: dict[str, ConsumerMoments] = {}
    shelf = Shelf() if filed else None
    for choice in choices:
        for consumer in choice.consumers:
            whole = _inputs(consumer.layer) <= LARGEST
            generator = torch.Generator().manual_seed(seed + crc32(consumer.layer.name.encode()))
            columns = None if whole else consumer.columns
            moments = ConsumerMoments(consumer.layer, columns, generator, Moments(Slot(shelf)))
            found.setdefault(key(choice, consumer), moments)
    return found


def in_passes(choices: Sequence[Choice]) -> tuple[list[list[Choice]], bool]:
    """The choices in order, cut into runs whose moments one pass gathers, and whether they go to a file."""
    return moments_in_runs(choices, lambda choice: {key(choice, c): _bytes(c) for c in choice.consumers})


def _inputs(layer: Layer) -> int:
    """Columns of the layer's matrix."""
    weight = layer.weight.value()
    return weight.numel() // weight.shape[layer.roles.outputs]


def _bytes(consumer: Consumer) -> int:
    size = _inputs(consumer.layer)
    return 8 * (size * size if size <= LARGEST else consumer.columns.size * consumer.columns.shape[1])
