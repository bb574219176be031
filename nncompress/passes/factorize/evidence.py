"""What the data says about each target: how errors of its weight are to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.curvature.sensitivity import output_gradients
from nncompress.analysis.observe.budget import in_runs
from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.patches import input_rows
from nncompress.analysis.observe.ridge import with_ridge
from nncompress.analysis.observe.statistics import ROWS, Moments, observe
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.layers.weights import Layer, argument
from nncompress.passes.base import Context
from nncompress.passes.factorize.targets import Target

NEGLIGIBLE = 1e-30  # sensitivity where there is none


@dataclass(frozen=True)
class Evidence:
    """Of one target.

    Attributes:
        metrics: per group.
        mean: E[x], float64 [groups, in], where the bias is to take up the mean of the error; else None.
    """

    metrics: Sequence[Metric]
    mean: Tensor | None = None


class Evidences:
    """Evidence of all targets: from one backward pass over the data (with `outputs`), and as many forward
    passes as it takes for the second moments that are held to fit in the budget; ask in the order given.

    Args:
        outputs: measure errors in the model's output instead of the layer's own.

    Attributes:
        passes: how many forward passes one round through the targets takes.

    Raises:
        UnsupportedError: the model cannot be differentiated.
    """

    def __init__(
        self, model: Model, targets: Sequence[Target], data: Dataset, context: Context, outputs: bool
    ) -> None:
        self._model, self._data, self._context = model, data, context
        usable = [t for t in targets if len({layer.kind for layer in t.layers}) == 1]
        self._runs = _runs(usable)
        self._run_of = {target.name: run for run in self._runs for target in run}
        self._held: dict[str, Moments | Tensor] = {}
        self._last: tuple[str, Evidence] | None = None
        self._rows: dict[str, Rows] = {}
        self._gradients: dict[fx.Node, Tensor] | None = None
        if outputs:
            nodes = [
                (layer.node, 1 if layer.roles.groups is not None else -1)
                for t in usable
                for layer in t.layers
            ]
            self._gradients = output_gradients(
                model,
                nodes,
                data.input_batches(context.batch_size, context.limit),
                seed=context.seed,
                progress=context.progress,
                total=context.limit,
            )

    @property
    def passes(self) -> int:
        return len(self._runs)

    def of(self, target: Target) -> Evidence | None:
        """Evidence of one target; None where its layers are of different kinds."""
        if target.name not in self._run_of:
            return None
        if self._last is None or self._last[0] != target.name:
            self._last = None
            if target.name not in self._held:
                self._held = {}  # before the next ones are gathered
                run = self._run_of[target.name]
                self._held = _input_moments(self._model, run, self._data, self._context)
            moments = self._held[target.name]
            if isinstance(moments, Moments):
                records = self._data.planned_records(self._context.limit) or 1
                self._rows[target.name] = Rows(target.name, moments.count, moments.total.shape[1], records)
            sensitivity = None
            if self._gradients is not None:
                zero = torch.zeros(())
                sensitivity = sum(self._gradients.get(layer.node, zero) for layer in target.layers)
            self._last = target.name, _evidence(target, moments, sensitivity)
        return self._last[1]

    def rows(self, targets: Sequence[Target]) -> list[Rows]:
        """What was seen of the inputs of these targets."""
        return [self._rows[target.name] for target in targets if target.name in self._rows]

    def metrics(self, target: Target) -> Sequence[Metric]:
        """Of a target with evidence."""
        evidence = self.of(target)
        assert evidence is not None
        return evidence.metrics


def _runs(targets: Sequence[Target]) -> list[list[Target]]:
    """The targets in order, cut into runs whose moments fit in the budget (or one target's)."""

    def needs(target: Target) -> dict[str, int]:
        groups, _, inputs = target.matrices(target.weight.value()).shape
        return {target.name: 8 * groups * inputs * (1 if target.layers[0].kind == "embedding" else inputs)}

    return in_runs(targets, needs)


def takes_mean(target: Target) -> bool:
    """Can a bias take up the mean of the target's error? Only if it is one layer with room for a bias."""
    layer = target.layers[0]
    if len(target.layers) > 1 or layer.roles.bias is None or "transpose" in layer.kind:
        return False
    if argument(layer.node, layer.roles.bias) is None:
        return True
    return layer.bias is not None and not layer.bias.quantized and layer.bias.value().dim() == 1


def _evidence(target: Target, moments: Moments | Tensor, sensitivity: object) -> Evidence:
    mean = None
    if isinstance(moments, Tensor):  # of an embedding: how often each row is looked up
        inputs = with_ridge(moments / moments.sum()).unsqueeze(0)
    elif takes_mean(target):
        mean, inputs = moments.mean, with_ridge(moments.covariance)
    else:
        inputs = with_ridge(moments.second)
    outputs: list[Tensor | None] = [None] * target.groups
    if isinstance(sensitivity, Tensor):
        if sensitivity.dim() == 0 or not bool(sensitivity.trace() > 0):  # the output does not depend on it
            channels = target.matrices(target.weight.value()).shape[1] * target.groups
            sensitivity = torch.eye(channels, dtype=torch.float64) * NEGLIGIBLE
        if "transpose" in target.layers[0].kind:  # a row of M per channel and place in the kernel
            kernel = target.weight.value()[0, 0].numel()
            sensitivity = torch.kron(sensitivity, torch.eye(kernel, dtype=torch.float64))
        size = len(sensitivity) // target.groups
        outputs = [
            with_ridge(sensitivity[g * size : (g + 1) * size, g * size : (g + 1) * size])
            for g in range(target.groups)
        ]
    return Evidence([Metric(s, g) for s, g in zip(inputs, outputs)], mean)


def _input_moments(
    model: Model, targets: Sequence[Target], data: Dataset, context: Context
) -> dict[str, Moments | Tensor]:
    generator = torch.Generator().manual_seed(context.seed)
    found: dict[str, Moments | Tensor] = {}
    watches: dict[fx.Node, list[Callable[[Tensor], None]]] = {}
    for target in targets:
        if target.layers[0].kind == "embedding":
            rows = torch.zeros(target.weight.value().shape[0], dtype=torch.float64)
            found[target.name] = rows

            def count(value: Tensor, rows: Tensor = rows) -> None:
                rows += torch.bincount(value.flatten(), minlength=len(rows))

            for layer in target.layers:
                watches.setdefault(layer.data, []).append(count)
            continue
        moments = found[target.name] = Moments()
        for layer in target.layers:

            def take(value: Tensor, layer: Layer = layer, moments: Moments = moments) -> None:
                moments.add(input_rows(layer, value, ROWS, generator))

            watches.setdefault(layer.data, []).append(take)
    observe(
        model,
        data.input_batches(context.batch_size, context.limit),
        watches,
        progress=context.progress,
        total=context.limit,
    )
    return found
