"""Fit the factors to what the layers really receive: outputs of the compressed layers before them.

The decompositions assume that a layer's input is the original one. Layer by layer, in graph order, the last
stage of each factored layer is solved for anew (least squares, closed form), so that from the inputs which
the compressed network makes it produces the outputs which the original network made (the asymmetric
reconstruction of Zhang et al. 2016 §3.3). Where its output, possibly after a batch norm, is added to another
branch, it also takes up that branch's error, so that errors do not add up along a residual network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from nncompress.analysis.compensation.regression import Regression
from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.moments import ROWS_OF_MOMENTS
from nncompress.analysis.observe.patches import draw_positions, input_rows, output_rows, samples_of
from nncompress.analysis.observe.walk import Inputs
from nncompress.ir import Model
from nncompress.ir.edit.fold import affine, is_affine
from nncompress.ir.graph.inputs import count_samples
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import Layer, layers
from nncompress.progress import Progress

SMALL = 1e-2  # channels that a batch norm scales by less than this, relatively, do not correct others


def refit(
    original: Model,
    compressed: Model,
    pairs: Sequence[tuple[str, str]],
    batches: Sequence[Inputs],
    seed: int,
    progress: Progress,
) -> list[Rows]:
    """Solve for the weights and biases of layers of `compressed`, in place; returns what each was fitted to.

    Args:
        pairs: name of a layer of `original`, name of the last stage that stands for it in `compressed`.
    """
    generator = torch.Generator().manual_seed(seed)
    old = {layer.name: layer for layer in layers(original)}
    new = {layer.name: layer for layer in layers(compressed)}
    budget = ByteBudget()
    reference = LayerwiseRunner(original, batches, budget)
    running = LayerwiseRunner(compressed, batches, budget)
    counts = [count_samples(original.inputs, inputs) for inputs in batches]
    order = {node: i for i, node in enumerate(compressed.graph.nodes)}
    pairs = [pair for pair in pairs if _linear(new[pair[1]])]
    pairs.sort(key=lambda pair: order[new[pair[1]].node])
    reference.hold(old[name].node for name, _ in pairs)
    rows = []
    for done, (name, stage) in enumerate(pairs):
        progress.step("fitting to the compressed inputs", done, len(pairs))
        layer, fitted = old[name], new[stage]
        branch = _branch(original, layer, compressed, fitted)
        if branch is not None and order[branch.new] > order[fitted.node]:
            branch = None  # the other branch comes later, and will take up this one's error
        now = running.values(fitted.data, *([branch.new] if branch else []))
        before = reference.values(layer.node, *([branch.old] if branch else []))
        regression, seen = Regression(centred=fitted.bias is not None), 0
        for (read, *added), (wanted, *was), samples in zip(now, before, counts, strict=True):
            if branch is not None:
                wanted = wanted + branch.error(was[0], added[0])
            positions = draw_positions(fitted, wanted, ROWS_OF_MOMENTS, generator)
            inputs = input_rows(fitted, read, positions=positions).double()
            numbers = seen + samples_of(fitted, wanted, samples, positions)
            regression.add(inputs, output_rows(fitted, wanted, positions).double(), numbers)
            seen += samples
        reference.release([layer.node])
        _solve(fitted, regression)
        rows.append(Rows(name, regression.count, inputs.shape[2], seen))
    progress.step("fitting to the compressed inputs", len(pairs), len(pairs))
    return rows


def _linear(layer: Layer) -> bool:
    """Its output is a product of its input with a weight that may take any value."""
    quantized = layer.weight.quantized or (layer.bias is not None and layer.bias.quantized)
    fits = layer.bias is None or layer.bias.finite  # of infinite outputs there are no least squares
    return "transpose" not in layer.kind and layer.kind != "embedding" and not quantized and fits


def _solve(layer: Layer, regression: Regression) -> None:
    """Regression towards the present weight; the bias, where there is one, takes the means."""
    solved, bias = regression.solve(layer.matrix().unflatten(0, (layer.groups, -1)))
    if layer.bias is not None and bias is not None:
        layer.bias.assign(bias.flatten())
    layer.weight.assign(layer.from_matrix(solved.flatten(0, 1)))


@dataclass(frozen=True)
class _Branch:
    """What is added to a layer's output, before the addition."""

    old: fx.Node
    new: fx.Node
    scale: Tensor  # of the batch norm in between: float [channels], or 1

    def error(self, before: Tensor, now: Tensor) -> Tensor:
        """What the layer would have to add for the sum to be right: [n, channels, ...].

        Args:
            before, now: what `old` and `new` give.
        """
        missing = before - now
        if self.scale.dim() == 0:
            return missing
        usable = self.scale.abs() > SMALL * self.scale.abs().max()
        inverse = torch.where(usable, 1 / self.scale, 0.0)
        return missing * inverse.reshape(-1, *(1,) * (missing.dim() - 2))


def _branch(original: Model, old: Layer, compressed: Model, new: Layer) -> _Branch | None:
    found_old, found_new = _addition(original, old), _addition(compressed, new)
    if found_old is None or found_new is None:
        return None
    return _Branch(found_old[0], found_new[0], found_new[1])


def _addition(model: Model, layer: Layer) -> tuple[fx.Node, Tensor] | None:
    """The other operand of the sum that the layer's output goes into alone, and the scale on the way."""
    node, scale = layer.node, torch.ones(())
    while len(node.users) == 1:
        user = next(iter(node.users))
        name = op_name(user)
        if name == "batch_norm" and user.args[0] is node and layer.roles.groups is not None:
            if not is_affine(model, user):
                return None
            scale = scale * affine(model, user)[0].to(scale.dtype)
        elif name == "add" and not user.kwargs and len(user.args) == 2:
            others = [a for a in user.args if a is not node]
            same = [a for a in others if isinstance(a, fx.Node) and _shape(a) == _shape(node)]
            return (same[0], scale) if len(same) == 1 else None
        elif name != "dropout":
            return None
        node = user
    return None


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    return str(tuple(value.shape)) if isinstance(value, Tensor) else ""
