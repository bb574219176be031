"""What flows through a model on real data, in one streamed pass: no activation outlives its batch.

    channels = {node: ChannelStatistics(dim=1) for node in nodes}
    observe(model, batches, {node: [c.add] for node, c in channels.items()})
    channels[node].variance                                          # float64 [channels]

Sums are kept in float64: in float32 a variance drowns where the mean is large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.walk import Inputs, Walk
from nncompress.ir.graph.inputs import count_samples
from nncompress.ir.graph.model import Model
from nncompress.progress import NullProgress, Progress

IN_CACHE = 1 << 17  # values that are looked at several times in a row


class ChannelStatistics:
    """Streamed mean, variance and activity of every channel of an activation.

    Args:
        dim: the channel dim of the activation: 1 for images, -1 for features.

    Attributes:
        count: values seen per channel.
        active: how many of them were not zero, float64 [channels] (the papers' activation count).
    """

    def __init__(self, dim: int = 1) -> None:
        self.dim = dim
        self.count = 0
        self.active = self._mean = self._squares = torch.zeros(0)  # _squares: about the mean

    def add(self, value: Tensor) -> None:
        """Take in one activation; two batches are joined as in Chan, Golub and LeVeque 1979."""
        channels = value.detach().movedim(self.dim, 0).unsqueeze(-1)
        if channels.is_complex():  # two numbers each
            channels = torch.view_as_real(channels.resolve_conj())
        rows = channels.flatten(1)
        count = rows.shape[1]
        parts = [_sums(some) for some in rows.split(max(1, IN_CACHE // max(count, 1)))]
        mean, squares, active = (torch.cat(each) for each in zip(*parts))
        if self.count == 0:
            self.count, self.active, self._mean, self._squares = count, active, mean, squares
            return
        both, apart = self.count + count, mean - self._mean
        self._squares = self._squares + squares + apart.square() * (self.count * count / both)
        self._mean = self._mean + apart * (count / both)
        self.active = self.active + active
        self.count = both

    @property
    def mean(self) -> Tensor:
        """float64 [channels]."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Population variance, float64 [channels]."""
        return self._squares / self.count


def _sums(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row its mean, its squares about that and how many are not zero; float64."""
    rows = rows.to(torch.float64)
    mean = rows.mean(1)
    return mean, (rows - mean[:, None]).square_().sum(1), rows.count_nonzero(1).to(torch.float64)


def observe(
    model: Model,
    batches: Iterable[Inputs],
    watches: Mapping[fx.Node, Sequence[Callable[[Tensor], None]]],
    *,
    progress: Progress | None = None,
    total: int | None = None,
    description: str = "collecting statistics",
) -> int:
    """Run `model` on every batch and show the values of some nodes to their watches, in graph order.

    Of each batch only what the watched nodes depend on is computed.

    Args:
        batches: the model's positional inputs.
        total: number of samples to come, for the progress display.

    Returns: the number of samples seen.
    """
    progress = progress or NullProgress()
    walk = Walk(model)
    walk.hooks.update(watches)
    seen = 0
    with torch.no_grad():
        for inputs in batches:
            progress.step(description, seen, total)
            walk.run(walk.start(*inputs), list(watches), kept=())
            seen += count_samples(model.inputs, inputs)
    progress.step(description, seen, total)
    return seen
