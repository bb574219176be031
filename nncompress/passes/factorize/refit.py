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

from nncompress.analysis.observe.layerwise import Lockstep
from nncompress.analysis.observe.patches import draw_positions, input_rows, output_rows
from nncompress.analysis.observe.statistics import ROWS, CrossMoments, Inputs
from nncompress.ir import Model
from nncompress.ir.edit.fold import affine, is_affine
from nncompress.ir.graph.normalize import op_name
from nncompress.ir.layers.weights import Layer, layers
from nncompress.progress import Progress

PULL = 1e-4  # towards the weights as they are, in mean eigenvalues of the inputs' second moment
SMALL = 1e-2  # channels that a batch norm scales by less than this, relatively, do not correct others


def refit(
    original: Model,
    compressed: Model,
    pairs: Sequence[tuple[str, str]],
    batches: Sequence[Inputs],
    seed: int,
    progress: Progress,
) -> None:
    """Solve for the weights and biases of layers of `compressed`, in place.

    Args:
        pairs: name of a layer of `original`, name of the last stage that stands for it in `compressed`.
    """
    generator = torch.Generator().manual_seed(seed)
    old = {layer.name: layer for layer in layers(original)}
    new = {layer.name: layer for layer in layers(compressed)}
    reference, running = Lockstep(original, batches), Lockstep(compressed, batches)
    for done, (name, stage) in enumerate(pairs):
        progress.step("fitting to the compressed inputs", done, len(pairs))
        layer, fitted = old[name], new[stage]
        if "transpose" in fitted.kind or fitted.kind == "embedding" or fitted.weight.quantized:
            continue
        branch = _branch(original, layer, compressed, fitted)
        reference.to(layer.node)
        running.to(fitted.data)
        if branch is not None and not (reference.reached(branch.old) and running.reached(branch.new)):
            branch = None  # the other branch comes later, and will take up this one's error
        moments = CrossMoments()
        for index in range(reference.batches):
            wanted = reference.value(layer.node, index)
            if branch is not None:
                wanted = wanted + branch.error(reference, running, index)
            positions = draw_positions(fitted, wanted, ROWS, generator)
            inputs = input_rows(fitted, running.value(fitted.data, index), positions=positions)
            moments.add(inputs, output_rows(fitted, wanted, positions))
        _solve(fitted, moments)
    progress.step("fitting to the compressed inputs", len(pairs), len(pairs))


def _solve(layer: Layer, moments: CrossMoments) -> None:
    """Ridge regression towards the present weight; the bias, where there is one, takes the means."""
    weight = layer.weight.value()
    transposed = layer.roles.outputs != 0  # matrix products store [in, out]
    present = (weight.T if transposed else weight).to(torch.float64)
    present = present.reshape(layer.groups, present.shape[0] // layer.groups, -1)
    count = moments.x.count
    free = layer.bias is not None and not layer.bias.quantized
    gram = moments.x.covariance if free else moments.x.second
    cross = moments.covariance if free else moments.products / count
    if layer.bias is not None and not free:
        return
    pull = PULL * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    system = gram + torch.diag_embed(pull[:, None].expand(gram.shape[:2]))
    solved = torch.linalg.solve(system, (cross + pull[:, None, None] * present).transpose(1, 2)).transpose(
        1, 2
    )
    if layer.bias is not None:
        mean = moments.y_total / count - (solved @ moments.x.mean[:, :, None]).squeeze(2)
        layer.bias.assign(mean.flatten())
    flat = solved.reshape(-1, solved.shape[2])
    layer.weight.assign((flat.T if transposed else flat).reshape(weight.shape))


@dataclass(frozen=True)
class _Branch:
    """What is added to a layer's output, before the addition."""

    old: fx.Node
    new: fx.Node
    scale: Tensor  # of the batch norm in between: float [channels], or 1

    def error(self, reference: Lockstep, running: Lockstep, batch: int) -> Tensor:
        """What the layer would have to add for the sum to be right: [n, channels, ...]."""
        missing = reference.value(self.old, batch) - running.value(self.new, batch)
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
