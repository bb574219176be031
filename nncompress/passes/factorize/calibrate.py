"""What the data says about each target: how errors of its weight are to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.curvature.sensitivity import output_gradients
from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.moments import RIDGE, InputMoments, Moments, lift, with_ridge
from nncompress.analysis.weight_targets import Target
from nncompress.data import Dataset, open_data
from nncompress.ir import Model
from nncompress.ir.layers.weights import argument
from nncompress.passes.base import Context
from nncompress.passes.moments import input_moments

RANDOM = 64  # samples
NEGLIGIBLE = 1e-30  # sensitivity where there is none


@dataclass(frozen=True)
class TargetStatistics:
    """Of one target.

    Attributes:
        metrics: per group.
        mean: E[x], float64 [groups, in], where the bias is to take up the mean of the error; else None.
    """

    metrics: Sequence[Metric]
    mean: Tensor | None = None


class CalibrationStatistics:
    """Statistics of all targets: from a forward pass over the data (see `InputMoments`: ask in the order
    given), and with `outputs` from one forward and back.

    Args:
        outputs: measure errors in the model's output instead of the layer's own.
        gather: gives the moments of what layers multiply.
        new_biases: a layer without a bias may get one, which takes up the mean of its error.

    Attributes:
        in_memory: second moments all are; the errors that they measure may be kept, too.

    Raises:
        UnsupportedError: the model cannot be differentiated.
    """

    def __init__(
        self,
        model: Model,
        targets: Sequence[Target],
        data: Dataset,
        context: Context,
        outputs: bool,
        *,
        gather: Callable[..., InputMoments] = input_moments,
        new_biases: bool = True,
    ) -> None:
        self._new_biases = new_biases
        usable = [t for t in targets if len({layer.kind for layer in t.layers}) == 1]
        self._moments = gather(model, {target.name: target.layers for target in usable}, data, context)
        self._last: tuple[str, TargetStatistics] | None = None
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
    def in_memory(self) -> bool:
        return self._moments.in_memory

    def of(self, target: Target) -> TargetStatistics | None:
        """Those of one target; None where its layers are of different kinds."""
        if target.name not in self._moments:
            return None
        if self._last is None or self._last[0] != target.name:
            self._last = None
            moments = self._moments[target.name]
            sensitivity = None
            if self._gradients is not None:
                zero = torch.zeros(())
                sensitivity = sum(self._gradients.get(layer.node, zero) for layer in target.layers)
            centred = takes_mean(target, new=self._new_biases)
            self._last = target.name, _statistics(target, moments, sensitivity, centred)
        return self._last[1]

    def rows(self, targets: Sequence[Target]) -> list[Rows]:
        """What was seen of the inputs of these targets."""
        return [self._moments.rows[target.name] for target in targets if target.name in self._moments.rows]

    def metrics(self, target: Target) -> Sequence[Metric]:
        """Of a target that has statistics."""
        found = self.of(target)
        assert found is not None
        return found.metrics


def random_tokens(model: Model, context: Context) -> Dataset | None:
    """Random inputs of a model that takes nothing but integers; None of another.

    A table makes of random tokens the vectors that it makes of others, so that what layers multiply is nearer
    to what they will than inputs that are alike in all directions, which a weight's own error supposes. Of
    random floats that does not hold.
    """
    if any(spec.dtype.startswith(("float", "bfloat")) for spec in model.inputs):
        return None
    context.notes.append(
        "no data: what layers lose was measured in the output, on random tokens; --data measures it on yours"
    )
    return open_data(model.example_inputs(RANDOM, context.seed), model.inputs)


def takes_mean(target: Target, *, new: bool = True) -> bool:
    """Can a bias take up the mean of the target's error? Only if it is one layer with room for a bias.

    Args:
        new: a layer without one has room.
    """
    layer = target.layers[0]
    if len(target.layers) > 1 or layer.roles.bias is None or "transpose" in layer.kind:
        return False
    if argument(layer.node, layer.roles.bias) is None:
        return new
    return layer.bias is not None and not layer.bias.quantized and layer.bias.value().dim() == 1


def _statistics(target: Target, moments: Moments, sensitivity: object, centred: bool) -> TargetStatistics:
    mean = None
    if target.layers[0].kind == "embedding":  # how often each row is looked up
        inputs = with_ridge(moments.mean[0]).unsqueeze(0)
    elif centred:
        mean, inputs = moments.mean, lift(moments.covariance, RIDGE)
    else:
        inputs = lift(moments.second, RIDGE)
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
    return TargetStatistics([Metric(s, g) for s, g in zip(inputs, outputs)], mean)
