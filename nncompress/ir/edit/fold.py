"""Batch norms as the affine maps they are in evaluation: folded into the layer before, or layers themselves.

With g = γ / sqrt(σ² + ε) per channel, the same function up to rounding:

    bn(W x + b) = (g W) x + (g (b − μ) + β)
    bn(x)       = g x + (β − g μ), a 1×1 convolution of each channel alone
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import Layer, argument, layers, owns_tensors, readers, reads, weight_at

aten = torch.ops.aten


def fold_batch_norms(model: Model) -> list[tuple[str, str]]:
    """Fold every batch norm that alone reads a convolution or linear layer; returns (layer, norm) names.

    Left as they are: batch norms in training mode, after a layer that others read too, after a layer whose
    weight or bias is shared with another layer or already int8, and after an addition or concatenation.
    Calls `model.refresh()` if anything was folded.
    """
    found = foldable_norms(model)
    folded = [(layer.name, norm_name(norm)) for layer, norm in found]
    if found:
        with edit.keeping_shapes(model):
            for layer, norm in found:
                _fold(model, layer, norm)
    return folded


def foldable_norms(model: Model) -> list[tuple[Layer, fx.Node]]:
    """What `fold_batch_norms` would fold: each layer and the batch norm that reads it."""
    found = ((layer, _foldable_norm(model, layer)) for layer in layers(model))
    return [(layer, norm) for layer, norm in found if norm is not None]


def folded_weight(model: Model, layer: Layer, norm: fx.Node) -> Tensor:
    """What becomes of the layer's weight where the norm is folded into it."""
    weight = layer.weight.value()
    return (weight.double() * _per_output(layer, affine(model, norm)[0])).to(weight.dtype)


def is_affine(model: Model, node: fx.Node) -> bool:
    """A batch norm in evaluation, over stored statistics, with a stored γ and β or none."""
    if op_name(node) != "batch_norm" or argument(node, 5):
        return False
    stored = [weight_at(model, argument(node, i)) is not None for i in (1, 2, 3, 4)]
    return all(stored[2:]) and all(stored[i] or argument(node, i + 1) is None for i in (0, 1))


def norm_names(model: Model, without: Collection[fx.Node] = ()) -> list[str]:
    """Of every affine batch norm that is not one of `without`."""
    return [norm_name(n) for n in model.graph.nodes if is_affine(model, n) and n not in without]


def convolve_norm(model: Model, norm: fx.Node) -> fx.Node:
    """Put a 1×1 convolution of each channel alone, [C, 1, 1, …], in the place of an affine batch norm.

    Its weight and bias get the names that γ and β had. The caller refreshes the model.
    """
    scale, mean, shift = affine(model, norm)
    dims = norm.args[0].meta["val"].dim() - 2  # type: ignore[union-attr]
    bias = -mean * scale if shift is None else shift - mean * scale
    dtype = model.tensor(str(norm.args[3].target)).dtype  # type: ignore[union-attr]
    name = norm_name(norm)
    given = [weight_at(model, argument(norm, position)) for position in (1, 2)]
    for position in (1, 2):
        edit.set_argument(norm, position, None)
    for old in {id(model.tensor(each.name)): each for each in given if each is not None}.values():
        if not reads(model, old.name):  # make room for the new ones under the old names
            for node in readers(model, old.name):
                norm.graph.erase_node(node)
            for alias in edit.names_of(model, model.tensor(old.name)):
                edit.remove_tensor(model, alias)
    stored = {
        leaf: edit.read_tensor(model, edit.add_tensor(model, f"{name}.{leaf}", value.to(dtype)), norm)
        for leaf, value in (("weight", scale.reshape(-1, *[1] * (dims + 1))), ("bias", bias))
    }
    convolution = (aten.conv1d, aten.conv2d, aten.conv3d)[dims - 1].default
    with edit.inserting_before(norm) as call:
        each = ([1] * dims, [0] * dims, [1] * dims, len(scale))  # stride, padding, dilation, groups
        result = call(convolution, norm.args[0], stored["weight"], stored["bias"], *each)
    result.meta["val"] = norm.meta["val"]
    edit.replace_node(norm, result)
    return result


def _foldable_norm(model: Model, layer: Layer) -> fx.Node | None:
    if layer.kind in ("embedding", "matmul", "mm") or layer.weight.quantized:
        return None
    users = list(layer.node.users)
    if len(users) != 1 or op_name(users[0]) != "batch_norm" or users[0].args[0] is not layer.node:
        return None
    norm = users[0]
    rank = layer.node.meta["val"].dim()
    if not is_affine(model, norm) or layer.channel_dim != 1 - rank:  # a batch norm's are along dim 1
        return None
    if not owns_tensors(model, layer) or layer.node.kwargs.get("beta", 1) != 1:  # of addmm: β b + α x W
        return None
    one_each = layer.bias is None or layer.bias.value().numel() == norm.meta["val"].shape[1]
    return norm if one_each else None


def _fold(model: Model, layer: Layer, norm: fx.Node) -> None:
    scale, mean, shift = affine(model, norm)
    weight = folded_weight(model, layer, norm)
    bias = layer.bias.value().double() if layer.bias is not None else torch.zeros_like(mean)
    bias = (bias - mean) * scale
    if shift is not None:
        bias = bias + shift
    layer.weight.assign(weight)
    if layer.bias is not None:
        layer.bias.assign(bias.to(weight.dtype))
    else:
        assert layer.roles.bias is not None
        name = edit.add_tensor(model, f"{layer.name.partition('#')[0]}.bias", bias.to(weight.dtype))
        edit.set_argument(layer.node, layer.roles.bias, edit.read_tensor(model, name, layer.node))
    edit.replace_node(norm, layer.node)


def _per_output(layer: Layer, scale: Tensor) -> Tensor:
    """`scale` per output channel, shaped to multiply the weight."""
    weight = layer.weight.value()
    shape = [1] * weight.dim()
    if layer.roles.outputs == 1 and layer.groups > 1:  # transposed: [in, out / groups, ...], in = groups · k
        repeated = scale.reshape(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1)
        return repeated.reshape(weight.shape[0], weight.shape[1], *shape[2:])
    shape[layer.roles.outputs] = -1
    return scale.reshape(shape)


def affine(model: Model, norm: fx.Node) -> tuple[Tensor, Tensor, Tensor | None]:
    """g, μ and β of an affine batch norm, each [C] in double."""
    gain, shift, mean, variance = (_stored(model, norm, i) for i in (1, 2, 3, 4))
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance.double() + float(argument(norm, 7)))  # type: ignore[arg-type]
    if gain is not None:
        scale = scale * gain.double()
    return scale, mean.double(), None if shift is None else shift.double()


def _stored(model: Model, norm: fx.Node, position: int) -> Tensor | None:
    weight = weight_at(model, argument(norm, position))
    return None if weight is None else weight.value()


def norm_name(norm: fx.Node) -> str:
    """The dotted name of the module that a batch norm came from; of a root module's own, the node's."""
    statistic = norm.args[3]
    assert isinstance(statistic, fx.Node)
    return str(statistic.target).rpartition(".")[0] or norm.name
