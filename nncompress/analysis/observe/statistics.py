"""What flows through a model on real data, in one streamed pass: no activation outlives its batch.

    moments = input_moments(model, list(layers(model)), batches)     # {layer name: Moments}
    moments["layer1.0.conv1"].covariance                             # float64 [groups, d, d]

    channels = {node: ChannelStatistics(dim=1) for node in nodes}
    observe(model, batches, {node: [c.add] for node, c in channels.items()})
    channels[node].variance                                          # float64 [channels]

Sums are kept in float64: in float32 a variance drowns where the mean is large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.patches import input_rows
from nncompress.analysis.observe.walk import Inputs, Walk
from nncompress.ir.graph.inputs import count_records
from nncompress.ir.graph.model import Model
from nncompress.ir.layers.weights import Layer
from nncompress.progress import NullProgress, Progress

ROWS = 8192  # positions of a layer that are drawn from every batch


class Moments:
    """Streamed first and second moments of vectors in groups.

    Attributes:
        count: vectors seen (per group).
        total: their sum, float64 [groups, d].
        products: the sum of their outer products, float64 [groups, d, d].
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = self.products = torch.zeros(0)

    def add(self, rows: Tensor) -> None:
        """Take in rows [groups, n, d]."""
        rows = rows.detach().to(torch.float64)
        total, products = rows.sum(1), rows.transpose(1, 2) @ rows
        if self.count == 0:
            self.total, self.products = total, products
        else:
            self.total += total
            self.products += products
        self.count += rows.shape[1]

    def join(self, other: Moments) -> None:
        """Take in what another has seen, which is not to be used any more."""
        if self.count == 0:
            self.count, self.total, self.products = other.count, other.total, other.products
        elif other.count:
            self.count += other.count
            self.total += other.total
            self.products += other.products

    @property
    def mean(self) -> Tensor:
        """E[x], float64 [groups, d]."""
        return self.total / self.count

    @property
    def second(self) -> Tensor:
        """E[x xᵀ], float64 [groups, d, d]."""
        return self.products / self.count

    @property
    def covariance(self) -> Tensor:
        """E[x xᵀ] − E[x] E[x]ᵀ, float64 [groups, d, d]."""
        mean = self.mean
        return self.second.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1)  # a large matrix: in place


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
        rows = value.detach().movedim(self.dim, 0).flatten(1).to(torch.float64)
        count, mean = rows.shape[1], rows.mean(1)
        squares = (rows - mean[:, None]).square().sum(1)
        active = rows.count_nonzero(1).to(torch.float64)
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
        total: number of records to come, for the progress display.

    Returns: the number of records seen.
    """
    progress = progress or NullProgress()
    walk = Walk(model)
    walk.hooks.update(watches)
    seen = 0
    with torch.no_grad():
        for inputs in batches:
            progress.step(description, seen, total)
            walk.run(walk.start(*inputs), list(watches), kept=())
            seen += count_records(model.inputs, inputs)
    progress.step(description, seen, total)
    return seen


def input_moments(
    model: Model,
    observed: Iterable[Layer],
    batches: Iterable[Inputs],
    *,
    rows: int | None = ROWS,
    seed: int = 0,
    progress: Progress | None = None,
    total: int | None = None,
) -> dict[str, Moments]:
    """Moments of the vectors that each layer multiplies (see `input_rows`), by layer name, in one pass.

    Args:
        rows: draw at most this many positions per batch and layer; None takes all.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Moments] = {}
    watches: dict[fx.Node, list[Callable[[Tensor], None]]] = {}
    for layer in observed:
        moments = found[layer.name] = Moments()

        def take(value: Tensor, layer: Layer = layer, moments: Moments = moments) -> None:
            moments.add(input_rows(layer, value, rows, generator))

        watches.setdefault(layer.data, []).append(take)
    observe(model, batches, watches, progress=progress, total=total)
    return found
