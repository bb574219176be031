"""Which values a weight may take, and the weight that has no others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.ir.formats.packed import distinct_values
from nncompress.ir.layers.weights import Layer
from nncompress.passes.cluster.codebooks import Codebooks
from nncompress.passes.cluster.options import SIZES
from nncompress.passes.cluster.positions import Positions
from nncompress.passes.cluster.round import round_weight, smallest_books


@dataclass(frozen=True)
class ValueRule:
    """Which values a weight may take: those of few decimals, or the entries of codebooks.

    Attributes:
        decimals: how many; None: codebooks.
        size: of a codebook; None: the smallest that loses at most `share_lost` of the weight's squares.
        per_channel: a codebook for each output channel, not one for the weight.
    """

    decimals: int | None
    size: int | None
    share_lost: float | None
    per_channel: bool

    @property
    def most(self) -> int:
        """Values that a codebook has at the most."""
        return self.size or SIZES[-1]

    def channels(self, layer: Layer, weight: Tensor) -> Tensor:
        """Which codebook each weight has, int64 of its shape: all the same, or its output channel's."""
        if not self.per_channel or weight.dim() < 2:
            return torch.zeros(1, dtype=torch.int64).expand(weight.shape)
        axis = layer.roles.outputs % weight.dim()
        spread = [-1 if dim == axis else 1 for dim in range(weight.dim())]
        return torch.arange(weight.shape[axis]).reshape(spread).expand(weight.shape)

    def why_not(self, weight: Tensor) -> str:
        """Why there is nothing to do; "" where there is."""
        present = distinct_values(weight)
        if self.size is not None and present is not None and len(present) <= self.size:
            return f"it has only {len(present)} values"
        if self.decimals is not None and bool((weight.round(decimals=self.decimals) == weight).all()):
            return "rounding does not change it"
        return ""

    def rounded(
        self,
        weight: Tensor,
        channels: Tensor,
        importance: Tensor | None,
        made_up: tuple[Positions, Tensor] | None,
    ) -> Tensor | str:
        """The weight with allowed values only; or why it is left as it is.

        Args:
            channels: from `channels`.
            importance: what a squared error of each weight costs, float64 of the weight's shape.
            made_up: as `round_weight` takes it.
        """
        decimals, owners = self.decimals, channels.flatten()
        if decimals is not None:
            return round_weight(weight, lambda values, at: values.double().round(decimals=decimals), made_up)
        if self.size is not None:
            books: Codebooks | str = Codebooks.fit(weight, channels, self.size, importance)
        else:
            books = smallest_books(self.share_lost or 0.0, weight, channels, importance)
        if isinstance(books, str):
            return books
        return round_weight(weight, lambda values, at: books.nearest(values, owners[at]), made_up)

    def described(self, clustered: Tensor) -> str:
        """How many values it has, in a few words."""
        if self.per_channel and self.size is not None:
            return f"{self.size} per channel"
        values = distinct_values(clustered)
        if values is None:
            return "more than 256 values"
        return f"{len(values)} value{'s' if len(values) > 1 else ''}"
