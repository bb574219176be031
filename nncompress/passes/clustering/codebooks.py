"""The values that a weight may take: one codebook for all of it, or one for each of its channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.analysis.kmeans import codebook


@dataclass(frozen=True)
class Codebooks:
    """Sorted values in the weight's own precision, zero not among them unless k-means puts it there.

    Attributes:
        rows: float64 [channels, K]; [1, K] where one codebook serves the whole weight.
    """

    rows: Tensor

    @classmethod
    def fit(cls, weight: Tensor, channels: Tensor, size: int, importance: Tensor | None) -> Codebooks:
        """The `size` values per channel with the least (weighted) squared error, found exactly.

        Zeros are left out, and take one of the `size` values where there are any.

        Args:
            channels: which codebook each weight has, int64 of the weight's shape.
            importance: what a squared error of each weight costs, of the weight's shape.
        """
        count = int(channels.max()) + 1
        order = torch.argsort(channels.flatten(), stable=True)
        per_channel = weight.numel() // count
        values = weight.detach().to(torch.float64).flatten()[order].reshape(count, per_channel)
        costs = None if importance is None else importance.flatten()[order].reshape(count, per_channel)
        books = []
        for channel, row in enumerate(values):
            kept = row != 0
            room = size if bool(kept.all()) else size - 1
            cost = None if costs is None else costs[channel][kept].numpy()
            found = torch.from_numpy(codebook(row[kept].numpy(), room, cost)) if bool(kept.any()) else row[:1]
            books.append(found.to(weight.dtype).to(torch.float64))  # each is one value when it is stored
        most = max(len(book) for book in books)
        return cls(torch.stack([torch.cat([b, b[-1:].expand(most - len(b))]) for b in books]))

    def nearest(self, values: Tensor, channels: Tensor) -> Tensor:
        """The nearest value of each value's channel, float64; both arguments of the same shape."""
        flat, owner = values.to(torch.float64).flatten().contiguous(), channels.flatten()
        middles = (self.rows[:, 1:] + self.rows[:, :-1]) / 2
        if len(self.rows) == 1:
            found = self.rows[0][torch.searchsorted(middles[0], flat)]
        else:
            index = torch.searchsorted(middles[owner], flat[:, None])
            found = self.rows[owner].gather(1, index)[:, 0]
        return found.reshape(values.shape)
