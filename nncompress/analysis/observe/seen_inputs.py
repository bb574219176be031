"""What a layer's inputs say about its weights, as the layers before it, already changed, make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from zlib import crc32

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.moments import (
    HELD_OUT,
    RIDGE_OF_FEW,
    RIDGES,
    Moments,
    held_out_ridge,
    lift,
    with_ridge,
)
from nncompress.analysis.observe.patches import input_rows
from nncompress.analysis.observe.walk import Inputs
from nncompress.ir import Model
from nncompress.ir.graph.inputs import count_samples
from nncompress.ir.layers.weights import Layer

CLEARLY = 1.1  # worse than the best ridge: stronger ones are not tried
ROWS_SEEN = 2048  # positions of a layer that are drawn from every batch
UNSEEN = 1e-2  # what a row that is never looked up counts, of what they count in the mean


class SeenInputs:
    """Second moments of every layer's inputs. The network is run layer by layer, on all batches.

    Args:
        weights: as of `LayerwiseRunner`.

    Attributes:
        rows: what was seen of each layer that was asked for.
        ridges: by layer, what its moments were lifted by.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Inputs],
        seed: int,
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._run = LayerwiseRunner(model, batches, weights=weights)
        self._seed = seed
        self._samples = [count_samples(model.inputs, inputs) for inputs in batches]
        self.rows: list[Rows] = []
        self.ridges: dict[str, float] = {}
        self._last: tuple[fx.Node, Tensor] | None = None

    def second_moments(self, layer: Layer) -> Tensor:
        """E[x xᵀ], float64 [groups, in, in], with the ridge that is best on every fourth sample, held out for
        that; of an embedding its diagonal [1, in]. Products that multiply the same (queries, keys and values)
        get the same tensor.

        Layers must be asked for in graph order.
        """
        if self._last is not None and self._last[0] is layer.data and layer.roles.groups is None:
            return self._last[1]
        self._last = None  # before the next one takes its place
        seen = self._run.values(layer.data)
        if layer.kind == "embedding":
            lookups = Moments()
            for (value,) in seen:
                lookups.add_lookups(value, len(layer.weight.value()))
            return with_ridge(lookups.total[0], UNSEEN).unsqueeze(0)
        fitted, held, _ = self._seen(layer, seen)
        ridge = RIDGE_OF_FEW
        if fitted.count and held.count:  # of sums instead of means, which are further copies, it is the same
            ridge = held_out_ridge(fitted, held)
        moment = self._lifted(layer, fitted, held, ridge)
        again = layer.roles.groups is None and len(layer.data.users) > 1
        self._last = (layer.data, moment) if again else None
        return moment

    def solved(self, layer: Layer, solve: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's weight as `solve` makes it of second moments [groups, in, in], with the ridge that
        leaves the least error on every fourth sample, held out for that.

        An error counts as a share of the output, by rows and by the mean row of each sample: what all
        positions of a sample have in common adds up in the layers to come, the rest averages out.

        Layers must be asked for in graph order.
        """
        fitted, held, means = self._seen(layer, self._run.values(layer.data))
        ridge = RIDGE_OF_FEW
        if fitted.count and held.count:
            before = _rows_of(layer, layer.weight.value())
            judges = [(moments.second, _power(before, moments.second)) for moments in (held, means)]
            least = inf
            for each in RIDGES:
                moved = _rows_of(layer, solve(with_ridge(fitted.second, each))) - before
                error = sum(_power(moved, second) / (power or 1.0) for second, power in judges)
                if error < least:
                    ridge, least = each, error
                elif error > CLEARLY * least:
                    break
        return solve(self._lifted(layer, fitted, held, ridge))

    def _lifted(self, layer: Layer, fitted: Moments, held: Moments, ridge: float) -> Tensor:
        fitted.join(held)
        self.ridges[layer.name] = ridge
        self.rows.append(Rows(layer.name, fitted.count, fitted.total.shape[1], sum(self._samples)))
        return lift(fitted.products.div_(fitted.count), ridge)  # a large matrix, not used any more: in place

    def _seen(self, layer: Layer, values: Iterable[tuple[Tensor]]) -> tuple[Moments, Moments, Moments]:
        """Of the rows of three quarters of the samples, of those of the others, of the others' mean rows."""
        fitted, held, means = Moments(), Moments(), Moments()
        # the same whichever layers were asked for before
        generator = torch.Generator().manual_seed(self._seed + crc32(layer.name.encode()))
        first = 0
        for (value,), samples in zip(values, self._samples, strict=True):
            # of which sample each entry of the first dim is; a value without that dim is of the first
            whole = value if value.dim() > 1 else value.unsqueeze(0)
            numbers = first + torch.arange(len(whole)) * samples // len(whole)
            own = numbers % HELD_OUT != HELD_OUT - 1
            own |= value.dim() < 2
            first += samples
            if own.any():
                most = max(1, ROWS_SEEN * int(own.sum()) // len(own))
                fitted.add(input_rows(layer, whole[own], most, generator))
            for number in numbers[~own].unique():
                most = max(1, ROWS_SEEN // samples)
                rows = input_rows(layer, whole[numbers == number], most, generator)
                held.add(rows)
                means.add(rows.mean(1, keepdim=True))
        return fitted, held, means


def _rows_of(layer: Layer, weight: Tensor) -> Tensor:
    """The weight that goes with `input_rows`: float64 [groups, outputs, in]."""
    return layer.matrix(weight).unflatten(0, (layer.groups, -1)).double()


def _power(weight: Tensor, second: Tensor) -> float:
    """E|W x|²."""
    return float(((weight @ second) * weight).sum())
