"""The reconstruction criterion: remove what the layers that read it can best do without.

Streamed over the original model:
1. second moments of the loss's gradient at every consumer's output, and of what the consumers read, in a file
   or in further passes what there is no room for; greedy elimination (`elimination.py`) ranks the units;
2. calibration, one pass: for half of each choice removed, the change of the output to second order,
   E ½ (Σ g·δ)², with the correlations between positions that moments leave out. It scales each choice's
   losses, so that different choices compare: they estimate a classifier's Kullback-Leibler divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.curvature.autograd import gradient_batch_size
from nncompress.analysis.curvature.sensitivity import with_products
from nncompress.analysis.curvature.stream import curvature_gradients
from nncompress.analysis.importance.activations import read_sites, sum_by_unit
from nncompress.analysis.importance.choices import Choice, Indices
from nncompress.analysis.importance.consumer_moments import (
    ConsumerMoments,
    in_passes,
    key,
    moments_of_consumers,
)
from nncompress.analysis.importance.elimination import Quadratic, eliminate, refit
from nncompress.analysis.importance.ranking import Ranking
from nncompress.analysis.importance.sample_dims import SampleDims
from nncompress.analysis.observe.gradient_hooks import GradientHooks, loss_products
from nncompress.analysis.observe.residual import Branch
from nncompress.analysis.observe.statistics import ChannelStatistics, observe
from nncompress.data import Batch, Dataset
from nncompress.ir import Model
from nncompress.ir.layers.weights import Layer
from nncompress.progress import Progress

DRAWS = 2  # random scalars per batch in calibration

Change = Callable[[GradientHooks], Tensor]


@dataclass
class Response:
    """How much the loss minds a layer's output.

    Attributes:
        metric: sum of g gᵀ over positions, g the gradient at the output.
        outputs: statistics of the output, for layers whose writing is a choice.
    """

    layer: Layer
    outputs: ChannelStatistics | None = None
    metric: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    samples: int = 0

    def add(self, result: Tensor, gradient: Tensor, samples: int) -> None:
        if self.outputs is not None:
            self.outputs.add(result)
        rows = gradient.movedim(self.layer.channel_dim, -1).flatten(0, -2)
        self.metric = with_products(self.metric, rows)
        self.samples += samples

    def gradient_moment(self) -> Tensor:
        return self.metric / max(self.samples, 1)


class Reconstruction:
    """Rankings of all choices in one unit, and what leaving out whole branches costs.

    Attributes:
        rankings: choice name -> ranking.
        branch_losses: loss of leaving out each of `branches`, its mean put in its place.
    """

    def __init__(
        self,
        model: Model,
        choices: Sequence[Choice],
        branches: Sequence[Branch],
        data: Dataset,
        *,
        limit: int | None,
        batch_size: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self._model, self._choices, self._branches = model, choices, branches
        self._data, self._limit, self._progress = data, limit, progress
        self._batch_size = gradient_batch_size(model, batch_size)
        self._seed = seed
        self._sample_dims = SampleDims(model)
        self.rankings: dict[str, Ranking] = {}
        self.branch_losses = [0.0] * len(branches)
        self._branch_means: list[Tensor] = [torch.zeros(0)] * len(branches)
        self._layers = self._observed()
        self._calibrate(self._rank_all())

    def _observed(self) -> dict[str, Layer]:
        found = {}
        for choice in self._choices:
            for layer in [c.layer for c in choice.consumers] + ([choice.layer] if choice.layer else []):
                found[layer.name] = layer
        return found

    # -- first pass ----------------------------------------------------------------------------------------

    def _rank_all(self) -> dict[str, list[tuple[fx.Node, Change]]]:
        """Rank all choices.

        Returns: choice name -> how outputs of layers change once the first half of its units is gone.
        """
        changes = {}
        passes, filed = in_passes(self._choices)
        moments = moments_of_consumers(passes[0], self._seed, filed=filed)
        responses = self._measure(moments)
        done = 0
        for number, choices in enumerate(passes):
            if number:
                moments = self._read(choices, filed=filed)
            for choice in choices:
                self._progress.step("ranking nodes", done, len(self._choices))
                self.rankings[choice.name] = self._rank(choice, moments, responses)
                if choice.consumers or choice.kind == "writes":
                    changes[choice.name] = self._half(choice, moments, responses)
                done += 1
        return changes

    def _measure(self, moments: dict[str, ConsumerMoments]) -> dict[str, Response]:
        """One pass with gradients: the responses of all layers, and the moments given."""
        writers = {c.layer.name for c in self._choices if c.kind == "writes" and c.layer is not None}
        responses = {
            name: Response(layer, ChannelStatistics(layer.channel_dim) if name in writers else None)
            for name, layer in self._layers.items()
        }
        totals: list[Tensor | None] = [None] * len(self._branches)
        counts = [0] * len(self._branches)

        def take(hooks: GradientHooks, gradients: Sequence[dict[fx.Node, Tensor]], batch: Batch) -> None:
            for response in responses.values():
                node = response.layer.node
                if node in hooks.value:
                    response.add(hooks.value[node].detach(), gradients[0][node], len(batch))
            for inputs in moments.values():
                if inputs.layer.node in hooks.value:
                    inputs.add(hooks.value[inputs.layer.data])
            for number, branch in enumerate(self._branches):
                value = hooks.value[branch.value].detach().double()
                total = value.movedim(branch_dim(branch), -1).flatten(0, -2).sum(0)
                before = totals[number]
                totals[number] = total if before is None else before + total
                counts[number] += value.numel() // len(total)

        self._stream("moments and gradients", 1, take)
        for number, found in enumerate(totals):
            if found is not None:
                self._branch_means[number] = found / counts[number]
        return responses

    def _read(self, choices: Sequence[Choice], *, filed: bool) -> dict[str, ConsumerMoments]:
        """One pass without gradients: the moments of some choices."""
        moments = moments_of_consumers(choices, self._seed, filed=filed)
        watches: dict[fx.Node, list[Callable[[Tensor], None]]] = {}
        for inputs in moments.values():
            watches.setdefault(inputs.layer.data, []).append(inputs.add)
        batches = (b.inputs for b in self._data.batches(self._batch_size, self._limit))
        planned = self._data.planned_samples(self._limit)
        observe(self._model, batches, watches, progress=self._progress, total=planned, description="moments")
        return moments

    def _stream(
        self,
        what: str,
        draws: int,
        take: Callable[[GradientHooks, Sequence[dict[fx.Node, Tensor]], Batch], None],
    ) -> int:
        layers = self._layers.values()
        bare = [site.node for c in self._choices if not c.consumers for site in read_sites(c)]
        values = [layer.node for layer in layers] + [b.value for b in self._branches] + bare
        seen = 0
        for hooks, gradients, batch in curvature_gradients(
            self._model,
            values,
            [layer.data for layer in layers],
            self._data,
            limit=self._limit,
            batch_size=self._batch_size,
            draws=draws,
            seed=self._seed + 1,
            progress=self._progress,
            what=what,
        ):
            take(hooks, gradients, batch)
            seen += len(batch)
        return seen

    def _rank(
        self, choice: Choice, moments: dict[str, ConsumerMoments], responses: dict[str, Response]
    ) -> Ranking:
        if choice.kind == "writes":
            assert choice.layer is not None
            response = responses[choice.layer.name]
            assert response.outputs is not None
            spread = response.outputs.variance
            return Ranking.from_scores((spread * response.gradient_moment().diagonal()).numpy())
        if not choice.consumers:
            return Ranking.from_scores(np.ones(choice.size))  # calibration gives the scores
        problems = (
            Quadratic(
                c.layer.matrix(),
                moments[key(choice, c)].covariance,
                responses[c.layer.name].gradient_moment(),
                c.columns,
            )
            for c in choice.consumers
            if responses[c.layer.name].samples
        )
        return Ranking.from_elimination(*eliminate(problems, choice.size), choice.size)

    def _half(
        self, choice: Choice, moments: dict[str, ConsumerMoments], responses: dict[str, Response]
    ) -> list[tuple[fx.Node, Change]]:
        """How the outputs of the layers at hand change once the first half of the choice's units is gone."""
        gone = self.rankings[choice.name].removed(half(choice))
        if choice.kind == "writes":
            assert choice.layer is not None
            return [(choice.layer.node, _silence(responses[choice.layer.name], gone))]
        return [
            (c.layer.node, _without(moments[key(choice, c)], c.columns[gone].ravel()))
            for c in choice.consumers
            if responses[c.layer.name].samples
        ]

    # -- second pass ---------------------------------------------------------------------------------------

    def _calibrate(self, changes: dict[str, list[tuple[fx.Node, Change]]]) -> None:
        totals = dict.fromkeys(changes, 0.0)
        branch_totals = [0.0] * len(self._branches)
        bare = {
            c.name: torch.zeros(c.size, dtype=torch.float64) for c in self._choices if c.name not in changes
        }

        def take(hooks: GradientHooks, gradients: Sequence[dict[fx.Node, Tensor]], batch: Batch) -> None:
            for choice in self._choices:
                if choice.name not in changes:
                    for site in read_sites(choice):
                        for g in gradients:
                            products = loss_products(hooks.value[site.node], g[site.node])
                            rows = self._sample_dims.total(site.node, products, len(batch), site.dim)
                            bare[choice.name] += sum_by_unit(site, rows, choice.size).square().sum(0) / DRAWS
                    continue
                totals[choice.name] += self._curvature(
                    [(node, change(hooks)) for node, change in changes[choice.name]], gradients, len(batch)
                )
            for number, branch in enumerate(self._branches):
                value = hooks.value[branch.value].detach()
                shape = [1] * value.dim()
                shape[branch_dim(branch)] = -1
                mean = self._branch_means[number].to(value.dtype).reshape(shape)
                branch_totals[number] += self._curvature(
                    [(branch.value, mean - value)], gradients, len(batch)
                )

        seen = max(self._stream("comparing nodes", DRAWS, take), 1)
        self.branch_losses = [total / seen / 2 for total in branch_totals]
        for choice in self._choices:
            if choice.name in bare:
                self.rankings[choice.name] = Ranking.from_scores((bare[choice.name] / seen / 2).numpy())
                continue
            ranking = self.rankings[choice.name]
            estimated = ranking.loss[half(choice)]
            if estimated > 0:
                self.rankings[choice.name] = ranking.scaled(totals[choice.name] / seen / 2 / estimated)

    def _curvature(
        self,
        changes: Sequence[tuple[fx.Node, Tensor]],
        gradients: Sequence[dict[fx.Node, Tensor]],
        samples: int,
    ) -> float:
        """Σ over samples of (Σ g·δ)², averaged over the random scalars.

        Where all samples share a value that changes, it is (Σ over samples of Σ g·δ)²: the same in
        expectation, as the random scalars of different samples are independent and of mean zero.
        """
        total = 0.0
        for g in gradients:
            parts = [self._sample_dims.total(node, g[node] * change, samples) for node, change in changes]
            if len({len(part) for part in parts}) > 1:
                parts = [part.sum(0, keepdim=True) for part in parts]
            total += float(torch.stack(parts).sum(0).double().square().sum()) / len(gradients)
        return total


def _without(inputs: ConsumerMoments, gone: Indices) -> Change:
    """How the output changes without the columns `gone`, the others and the bias at their best."""
    layer, second = inputs.layer, inputs.covariance
    weight = layer.matrix().double()
    if second.dim() == 2:
        change = refit(weight, second, np.setdiff1d(np.arange(weight.shape[1]), gone)) - weight
    else:  # nothing makes up for them
        change = torch.zeros_like(weight)
        change[:, gone] = -weight[:, gone]
    dtype = layer.weight.value().dtype
    kernel = layer.from_matrix(change.to(dtype))
    offset = -(change @ inputs.mean()).to(dtype)

    def run(hooks: GradientHooks) -> Tensor:
        return apply_layer(layer, hooks.value[layer.data].detach(), kernel, offset)

    return run


def _silence(response: Response, gone: Sequence[int]) -> Change:
    """The layer's output channels `gone` at their means."""
    layer = response.layer
    assert response.outputs is not None
    dtype = layer.weight.value().dtype
    mask = torch.zeros(layer.weight.value().shape[layer.roles.outputs], dtype=dtype)
    mask[list(gone)] = 1
    mean = response.outputs.mean.to(dtype)

    def run(hooks: GradientHooks) -> Tensor:
        value = hooks.value[layer.node].detach()
        shape = [1] * value.dim()
        shape[layer.channel_dim] = -1
        return (mean.reshape(shape) - value) * mask.reshape(shape)

    return run


def apply_layer(layer: Layer, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's operation with another weight and bias, in the precision of `value`."""
    weight, bias = weight.to(value.dtype), None if bias is None else bias.to(value.dtype)
    if layer.kind in ("mm", "addmm"):
        result = value @ weight
        return result if bias is None else result + bias
    arguments = list(layer.node.args)
    while len(arguments) < 3:
        arguments.append(None)
    arguments[layer.roles.data], arguments[layer.roles.weight] = value, weight
    arguments[2] = bias
    kwargs = {k: v for k, v in layer.node.kwargs.items() if k not in ("input", "weight", "bias")}
    assert callable(layer.node.target)
    return layer.node.target(*arguments, **kwargs)


def half(choice: Choice) -> int:
    return max(1, choice.size // 2)


def branch_dim(branch: Branch) -> int:
    return branch.layers[-1].channel_dim


__all__ = ["Reconstruction", "apply_layer", "branch_dim"]
