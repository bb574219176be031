"""Which layers are quantized, and which of them multiply integers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatch

from nncompress.devices import processor
from nncompress.dtypes import dtype_name
from nncompress.ir import Model
from nncompress.ir.factors import Product, products
from nncompress.ir.formats.qdq import is_dequantized
from nncompress.ir.graph.ops import PRODUCTS
from nncompress.ir.layers.weights import Layer, layers
from nncompress.passes.base import Change
from nncompress.targets import TARGETS

# Weights alone are int8: ONNX Runtime has no int8 kernel for these, so rounding their activations only costs.
WEIGHTS_ONLY = ("embedding", "conv_transpose", "convolution_transposed")

HEAD = "detection_head"  # in a model's metadata: patterns of the names of its layers


def choose(model: Model, keep: Collection[str]) -> tuple[list[Layer], list[Change]]:
    """Layers to quantize, and a record of each that is skipped with the reason.

    Args:
        keep: patterns of layer names; a weight that such a layer shares with others stays in float for all.
            The model may remember more, those of its detection head.
    """
    found = list(layers(model))
    kept = _weights_of(found, keep)
    head = _weights_of(found, model.metadata.get(HEAD, ()))
    chosen, left = [], []
    for layer in found:
        if layer.weight.quantized:
            left.append(Change(layer.name, "skipped: quantized already", applied=False))
        elif (dtype := layer.weight.value().dtype).is_complex:
            left.append(Change(layer.name, f"skipped: {dtype_name(dtype)} is not rounded", applied=False))
        elif layer.weight.name in kept:
            left.append(Change(layer.name, "left in float by --keep", applied=False))
        elif layer.weight.name in head:
            reason = "left in float: of the detection head (--include-head rounds it, too)"
            left.append(Change(layer.name, reason, applied=False))
        else:
            chosen.append(layer)
    return chosen, left


def _weights_of(found: Sequence[Layer], patterns: Collection[str]) -> set[str]:
    return {layer.weight.name for layer in found if any(fnmatch(layer.name, each) for each in patterns)}


def integer_layers(chosen: Sequence[Layer], mode: str) -> list[Layer]:
    """The layers whose activations are rounded too: those that have an int8 kernel to run on.

    A dynamic range pays for matrix products only: ONNX Runtime's int8 convolution of that kind is slower than
    its float one.
    """
    if mode == "weights":
        return []
    found = [each for each in chosen if not each.kind.startswith(WEIGHTS_ONLY)]
    return [each for each in found if each.kind in PRODUCTS] if mode == "dynamic" else found


def choose_products(
    model: Model, keep: Collection[str], mode: str, target: str | None
) -> tuple[list[Product], list[Change]]:
    """Products of activations that run in int8 in the target, and a record of each that is kept from it.

    Where sums of 8-bit products overflow, weights can take 7 bits; activations stay floats.
    """
    where = TARGETS.get(target or "")
    if mode != "static" or where is None or not where.products or processor().saturates:
        return [], []
    chosen, left = [], []
    for product in products(model):
        if all(map(is_dequantized, product.factors)):
            left.append(Change(product.name, "skipped: quantized already", applied=False))
        elif any(fnmatch(product.name, each) for each in keep):
            left.append(Change(product.name, "left in float by --keep", applied=False))
        else:
            chosen.append(product)
    return chosen, left


def by_weight(chosen: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers that share each stored weight."""
    shared: dict[str, list[Layer]] = {}
    for layer in chosen:
        shared.setdefault(layer.weight.name, []).append(layer)
    return shared


def scale_axis(sharing: Sequence[Layer]) -> int:
    """The dim of the weight that has a scale per index: outputs of an integer layer, or rows of a table."""
    axes = _output_dims(sharing)
    if not axes:
        table = any(layer.kind == "embedding" for layer in sharing)
        return 0 if table else sharing[0].roles.outputs % sharing[0].weight.value().dim()
    return axes[0]


def one_scale(sharing: Sequence[Layer]) -> bool:
    """Do its integer layers read the weight along different dims (an autoencoder with tied weights)?

    An integer kernel adds up int8 products and scales their sum, so a scale per input cannot be had: all
    of the weight gets one scale.
    """
    return len(set(_output_dims(sharing))) > 1


def _output_dims(sharing: Sequence[Layer]) -> list[int]:
    return [
        layer.roles.outputs % layer.weight.value().dim()
        for layer in sharing
        if not layer.kind.startswith(WEIGHTS_ONLY)
    ]
