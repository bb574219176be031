"""Which layers least squares can be written for."""

from __future__ import annotations

from nncompress.analysis.importance.consumer_moments import LARGEST
from nncompress.analysis.observe.residual import sums_over_channels
from nncompress.ir import Model
from nncompress.ir.layers.geometry import geometry
from nncompress.ir.layers.weights import Layer, readers


def why_not_fitted(model: Model, layer: Layer) -> str | None:
    """What keeps a layer as it is, or None: it is linear in rows of its input, its weight is its own, and it
    has few enough columns."""
    weight = layer.weight.value()
    convolution = layer.roles.groups is not None
    if layer.weight.quantized or not weight.is_floating_point():
        return "its weight is quantized"
    if layer.kind in ("embedding", "matmul") or (layer.kind == "addmm" and layer.node.kwargs):
        return f"least squares are not written for {layer.kind}"
    if weight.dim() < 2 or (not convolution and not sums_over_channels(layer)):
        return "it is no matrix product"
    if convolution and geometry(layer) is None:
        return "its padding is uneven"
    for each in (layer.weight, layer.bias):
        if each is not None and sum(len(n.users) for n in readers(model, each.name)) > 1:
            return f"{each.name} serves several layers, whose inputs depend on it: no closed form"
    if layer.bias is not None and not layer.bias.finite:
        return f"{layer.bias.name} holds infinite values"
    if layer.matrix(weight).shape[1] > LARGEST:
        return f"more than {LARGEST} weights per output"
    return None
