"""The reconstruction criterion: remove what the layers that read it can best do without.

Two streamed passes over the original model:
1. second moments of what every consumer reads, and of the loss's gradient at its output; greedy elimination
   (`elimination.py`) then ranks the units of every choice;
2. calibration: for half of each choice removed, the change of the output to second order, E ½ (Σ g·δ)², with
   all correlations between positions that the moments leave out. It scales each choice's losses, so that
   those of different choices compare: they estimate the Kullback-Leibler divergence of a classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.importance.activations import read_sites, sum_by_unit
from nncompress.analysis.importance.choices import Choice, Consumer
from nncompress.analysis.importance.elimination import Quadratic, eliminate, refit
from nncompress.analysis.importance.ranking import Ranking
from nncompress.analysis.importance.taps import Taps, curvature_loss, gradient_batch_size
from nncompress.analysis.patches import input_rows
from nncompress.analysis.residual import Branch, channel_dim
from nncompress.analysis.statistics import Moments
from nncompress.data import Batch, Dataset
from nncompress.ir import Model
from nncompress.ir.weights import Layer
from nncompress.progress import Progress

POSITIONS = 64  # of a layer, drawn per record
DRAWS = 2  # random scalars per batch in calibration


@dataclass
class Reading:
    """Moments at one layer.

    Attributes:
        inputs: of the rows that it reads; metric: sum of g gᵀ at its output; outputs: of what it writes.
    """

    layer: Layer
    inputs: Moments
    outputs: Moments
    metric: Tensor
    records: int = 0

    def add(self, read: Tensor, result: Tensor, gradient: Tensor, generator: torch.Generator) -> None:
        self.inputs.add(input_rows(self.layer, read.detach(), POSITIONS * len(read), generator))
        dim = channel_dim(self.layer)
        self.outputs.add(result.detach().movedim(dim, -1).flatten(0, -2)[None])
        rows = gradient.movedim(dim, -1).flatten(0, -2)
        self.metric = self.metric + (rows.T @ rows).double()
        self.records += len(read)

    @property
    def covariance(self) -> Tensor:
        return self.inputs.covariance[0]

    def gradient_moment(self) -> Tensor:
        return self.metric / max(self.records, 1)


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
        self.rankings: dict[str, Ranking] = {}
        self.branch_losses = [0.0] * len(branches)
        self._branch_means: list[Tensor] = [torch.zeros(0)] * len(branches)
        self._readings = self._measure()
        for number, choice in enumerate(choices):
            progress.step("ranking nodes", number, len(choices))
            self.rankings[choice.name] = self._rank(choice)
        self._calibrate()

    # -- first pass ----------------------------------------------------------------------------------------

    def _measure(self) -> dict[str, Reading]:
        readings: dict[str, Reading] = {}
        for choice in self._choices:
            for layer in [c.layer for c in choice.consumers] + ([choice.layer] if choice.layer else []):
                readings.setdefault(
                    layer.name, Reading(layer, Moments(), Moments(), torch.zeros((), dtype=torch.float64))
                )
        generator = torch.Generator().manual_seed(self._seed)
        totals: list[Tensor | None] = [None] * len(self._branches)
        counts = [0] * len(self._branches)

        def take(taps: Taps, gradients: Sequence[dict[fx.Node, Tensor]], batch: Batch) -> None:
            for reading in readings.values():
                node = reading.layer.node
                if node in taps.value:
                    reading.add(taps.read[node], taps.value[node], gradients[0][node], generator)
            for number, branch in enumerate(self._branches):
                value = taps.value[branch.value].detach().double()
                kept = [0, *range(2, value.dim())] if branch_dim(branch) == 1 else [*range(value.dim() - 1)]
                total = value.sum(kept)
                before = totals[number]
                totals[number] = total if before is None else before + total
                counts[number] += value.numel() // len(total)

        self._stream("moments and gradients", readings.values(), 1, take)
        for number, found in enumerate(totals):
            if found is not None:
                self._branch_means[number] = found / counts[number]
        return readings

    def _stream(
        self,
        what: str,
        readings: Iterable[Reading],
        draws: int,
        take: Callable[[Taps, Sequence[dict[fx.Node, Tensor]], Batch], None],
    ) -> int:
        layers = [r.layer for r in readings]
        bare = [site.node for c in self._choices if not c.consumers for site in read_sites(c)]
        values = [layer.node for layer in layers] + [b.value for b in self._branches] + bare
        taps = Taps(self._model, {layer.node: layer.data for layer in layers}, values)
        generator = torch.Generator().manual_seed(self._seed + 1)
        seen, planned = 0, self._data.planned_records(self._limit)
        for batch in self._data.batches(self._batch_size, self._limit):
            self._progress.step(what, seen, planned)
            with torch.enable_grad():
                outputs = taps.run(*batch.inputs)
                losses = [curvature_loss(outputs, batch.labels, generator) for _ in range(draws)]
            gradients = [taps.gradients(loss, again=i + 1 < draws)[1] for i, loss in enumerate(losses)]
            with torch.no_grad():
                take(taps, gradients, batch)
            seen += len(batch)
        self._progress.step(what, seen, planned)
        return seen

    def _rank(self, choice: Choice) -> Ranking:
        if choice.kind == "writes":
            assert choice.layer is not None
            reading = self._readings[choice.layer.name]
            spread = reading.outputs.covariance[0].diagonal()
            return Ranking.from_scores((spread * reading.gradient_moment().diagonal()).numpy())
        if not choice.consumers:
            return Ranking.from_scores(np.ones(choice.size))  # calibration gives the scores
        problems = [self._quadratic(c) for c in choice.consumers if c.layer.node in self._reached()]
        return Ranking.from_elimination(*eliminate(problems, choice.size), choice.size)

    def _reached(self) -> set[fx.Node]:
        return {r.layer.node for r in self._readings.values() if r.records}

    def _quadratic(self, consumer: Consumer) -> Quadratic:
        reading = self._readings[consumer.layer.name]
        return Quadratic(
            matrix(consumer.layer), reading.covariance, reading.gradient_moment(), consumer.columns
        )

    # -- second pass ---------------------------------------------------------------------------------------

    def _calibrate(self) -> None:
        changes = {c.name: self._half(c) for c in self._choices if c.consumers or c.kind == "writes"}
        totals = dict.fromkeys(changes, 0.0)
        branch_totals = [0.0] * len(self._branches)
        bare = {
            c.name: torch.zeros(c.size, dtype=torch.float64) for c in self._choices if c.name not in changes
        }

        def take(taps: Taps, gradients: Sequence[dict[fx.Node, Tensor]], batch: Batch) -> None:
            for choice in self._choices:
                if choice.name not in changes:
                    for site in read_sites(choice):
                        for g in gradients:
                            products = (taps.value[site.node].detach() * g[site.node]).double()
                            rows = products.movedim(site.dim, -1)
                            rows = rows.reshape(len(batch), -1, rows.shape[-1]).sum(1)
                            bare[choice.name] += sum_by_unit(site, rows, choice.size).square().sum(0) / DRAWS
                    continue
                totals[choice.name] += _curvature(
                    [(node, change(taps)) for node, change in changes[choice.name]], gradients, len(batch)
                )
            for number, branch in enumerate(self._branches):
                value = taps.value[branch.value].detach()
                shape = [1] * value.dim()
                shape[branch_dim(branch)] = -1
                mean = self._branch_means[number].to(value.dtype).reshape(shape)
                branch_totals[number] += _curvature([(branch.value, mean - value)], gradients, len(batch))

        seen = max(self._stream("comparing nodes", self._readings.values(), DRAWS, take), 1)
        self.branch_losses = [total / seen / 2 for total in branch_totals]
        for choice in self._choices:
            if choice.name in bare:
                self.rankings[choice.name] = Ranking.from_scores((bare[choice.name] / seen / 2).numpy())
                continue
            ranking = self.rankings[choice.name]
            estimated = ranking.loss[half(choice)]
            if estimated > 0:
                self.rankings[choice.name] = ranking.scaled(totals[choice.name] / seen / 2 / estimated)

    def _half(self, choice: Choice) -> list[tuple[fx.Node, Callable[[Taps], Tensor]]]:
        """How the outputs of the layers at hand change once the first half of the choice's units is gone."""
        gone = self.rankings[choice.name].removed(half(choice))
        if choice.kind == "writes":
            assert choice.layer is not None
            return [(choice.layer.node, _silence(self._readings[choice.layer.name], gone))]
        found = []
        for consumer in choice.consumers:
            if consumer.layer.node in self._reached():
                reading = self._readings[consumer.layer.name]
                kept = np.setdiff1d(np.arange(len(reading.covariance)), consumer.columns[gone].ravel())
                weight = matrix(consumer.layer).double()
                change = refit(weight, reading.covariance, kept) - weight
                found.append((consumer.layer.node, _applied(reading, change)))
        return found


def _curvature(
    changes: Sequence[tuple[fx.Node, Tensor]], gradients: Sequence[dict[fx.Node, Tensor]], records: int
) -> float:
    """Σ over records of (Σ g·δ)², averaged over the random scalars."""
    total = 0.0
    for g in gradients:
        first_order = sum((g[node] * change).reshape(records, -1).sum(1) for node, change in changes)
        assert isinstance(first_order, Tensor)
        total += float(first_order.double().square().sum()) / len(gradients)
    return total


def _applied(reading: Reading, change: Tensor) -> Callable[[Taps], Tensor]:
    """The layer with the weight `change` `[out, in]` and the bias that keeps its mean."""
    layer = reading.layer
    shape = layer.weight.value().shape
    moved = [shape[layer.roles.outputs], *(s for d, s in enumerate(shape) if d != layer.roles.outputs)]
    weight = change.float().reshape(moved).movedim(0, layer.roles.outputs)
    offset = -(change @ reading.inputs.mean[0]).float()

    def run(taps: Taps) -> Tensor:
        return apply_layer(layer, taps.read[layer.node].detach(), weight, offset)

    return run


def _silence(reading: Reading, gone: Sequence[int]) -> Callable[[Taps], Tensor]:
    """The layer's output channels `gone` at their means."""
    layer = reading.layer
    mask = torch.zeros(layer.weight.value().shape[layer.roles.outputs])
    mask[list(gone)] = 1
    mean = reading.outputs.mean[0].float()

    def run(taps: Taps) -> Tensor:
        value = taps.value[layer.node].detach()
        shape = [1] * value.dim()
        shape[channel_dim(layer)] = -1
        return (mean.reshape(shape) - value) * mask.reshape(shape)

    return run


def apply_layer(layer: Layer, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's operation with another weight and bias."""
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


def matrix(layer: Layer) -> Tensor:
    """The weight as `[out, in · K…]`."""
    return layer.weight.value().movedim(layer.roles.outputs, 0).flatten(1)


def half(choice: Choice) -> int:
    return max(1, choice.size // 2)


def branch_dim(branch: Branch) -> int:
    return channel_dim(branch.layers[-1])


__all__ = ["Reconstruction", "apply_layer", "branch_dim", "matrix"]
