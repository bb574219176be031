"""Per-channel scales of a layer, absorbed by the batch norm after or before it.

bn(D y) = bn'(y)       mean' = mean / D,  variance' = variance / D²,  gain' = gain · D · sqrt(…)
relu(bn(x)) · E = relu(bn'(x))        gain' = E · gain,  shift' = E · shift,  for E > 0
"""

from __future__ import annotations

from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import Layer, Weight, argument, readers, weight_at


def norm_after(model: Model, layer: Layer) -> fx.Node | None:
    """The batch norm that alone reads the layer, and can take up a scale of its outputs."""
    users = list(layer.node.users)
    if len(users) != 1 or layer.bias is not None or users[0].args[:1] != (layer.node,):
        return None
    return users[0] if _absorbs(model, users[0], (1, 3, 4)) else None


def norm_before(model: Model, layer: Layer) -> fx.Node | None:
    """The batch norm that feeds the layer through a ReLU alone, and can take up a positive scale."""
    relu = layer.data
    if op_name(relu) != "relu" or len(relu.users) != 1:
        return None
    norm = relu.args[0]
    if not isinstance(norm, fx.Node) or len(norm.users) != 1:
        return None
    return norm if _absorbs(model, norm, (1, 2)) else None


def scale_outputs(model: Model, layer: Layer, scale: Tensor) -> None:
    """The norm after the layer computes of y what it computed of scale · y; scale [channels], not 0."""
    norm = norm_after(model, layer)
    assert norm is not None
    gain, mean, variance = (_stored(model, norm, i) for i in (1, 3, 4))
    eps = float(argument(norm, 7))  # type: ignore[arg-type]
    old = variance.value().double()
    fresh = old / scale.square()
    factor = scale * ((fresh + eps) / (old + eps)).sqrt()
    gain.assign(gain.value() * factor)
    mean.assign(mean.value() / scale)
    variance.assign(fresh)


def scale_inputs(model: Model, layer: Layer, scale: Tensor) -> None:
    """The layer receives scale · x instead of x; scale [channels], above 0."""
    norm = norm_before(model, layer)
    assert norm is not None
    for position in (1, 2):
        stored = _stored(model, norm, position)
        stored.assign(stored.value() * scale)


def _absorbs(model: Model, norm: fx.Node, positions: tuple[int, ...]) -> bool:
    """Is it a batch norm in evaluation mode that has these tensors for itself?"""
    if op_name(norm) != "batch_norm" or argument(norm, 5):
        return False
    for position in positions:
        stored = weight_at(model, argument(norm, position))
        if stored is None or stored.quantized:
            return False
        if {user for node in readers(model, stored.name) for user in node.users} != {norm}:
            return False
    return True


def _stored(model: Model, norm: fx.Node, position: int) -> Weight:
    stored = weight_at(model, argument(norm, position))
    assert stored is not None
    return stored
