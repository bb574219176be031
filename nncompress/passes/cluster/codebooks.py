"""The values that a weight may take: one codebook for all of it, or one for each of its channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.analysis.rounding.kmeans import codebook


@dataclass(frozen=True)
class Codebooks:
    """Sorted values in the weight's own precision, of few digits; zero only where k-means puts it.

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
        values = _by_channel(
            weight.detach() if weight.dtype == torch.float64 else weight.detach().float(), channels, count
        )
        costs = None if importance is None else _by_channel(importance, channels, count)
        books = []
        for channel, row in enumerate(values):
            kept = row != 0
            room = size if bool(kept.all()) else size - 1
            cost = None if costs is None else costs[channel][kept].numpy()
            found = torch.from_numpy(codebook(row[kept].numpy(), room, cost)) if bool(kept.any()) else row[:1]
            books.append(
                shortened(found.double(), size).to(weight.dtype).to(torch.float64)
            )  # as it is stored
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


def _by_channel(values: Tensor, channels: Tensor, count: int) -> Tensor:
    """[channels, values of each]."""
    if count == 1:  # without a copy
        return values.reshape(1, -1)
    return values.flatten()[torch.argsort(channels.flatten(), stable=True)].reshape(count, -1)


def shortened(book: Tensor, size: int) -> Tensor:
    """A codebook of up to `size` values, float64 [n], rounded to log2(size) + 3 binary digits, at most 11.

    An entry then moves by far less than to its neighbour (the squared error grows by a few thousandths), and
    files hold it in half precision (`nncompress.ir.formats.packed`), the bits that are zero at no cost if
    they are entropy-coded. Books whose values are beyond the range of half precision stay as they are.
    """
    digits = min(11, (size - 1).bit_length() + 3)
    mantissa, exponent = torch.frexp(book)
    rounded = torch.ldexp(torch.round(mantissa * 2**digits), exponent - digits)
    half = rounded.to(torch.float16).to(torch.float64)
    step = float(book.abs().max()) * 2.0**-digits  # half precision has steps of at least 2^-24
    return half if step >= 2.0**-24 and bool(half.isfinite().all()) else book
