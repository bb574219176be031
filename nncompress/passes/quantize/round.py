"""Round a prepared model, in place: weights to stored int8, activations through pairs in the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.rounding.coordinate_descent import round_adaptively
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.factors import Product
from nncompress.ir.formats.qdq import (
    QParams,
    insert_dynamic,
    insert_pair,
    is_dequantized,
    round_biases,
    round_weight,
    store_int8,
)
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.recurrent import RecurrentLayer
from nncompress.ir.layers.weights import Layer
from nncompress.passes.base import Change
from nncompress.passes.quantize.calibrate import CalibrationStatistics
from nncompress.passes.quantize.choose import (
    by_weight,
    choose,
    choose_products,
    integer_layers,
    one_scale,
    scale_axis,
)
from nncompress.passes.quantize.correct_bias import correct_biases
from nncompress.passes.quantize.recurrent import choose_recurrent, round_recurrent

Left = Mapping[str, str]  # layer -> why it stays in float


def round_layers(
    model: Model,
    chosen: list[Layer],
    products: list[Product],
    mode: str,
    statistics: CalibrationStatistics,
) -> list[Change]:
    """Quantize `chosen` and what `products` multiply; the model still has to be refreshed."""
    integer = integer_layers(chosen, mode)
    qparams: dict[fx.Node, QParams] = {}
    plan = statistics.plan(model, integer, products) if mode == "static" else None
    if plan is not None:
        qparams = {node: statistics.qparams[node.name] for node in plan.points}
    changes = []
    for name, sharing in by_weight(chosen).items():
        axis, bits = scale_axis(sharing), statistics.bits[name]
        stored, scales = rounded(sharing, axis, bits, qparams, statistics)
        numbers = _numbers(sharing[0].weight.value(), stored, scales, axis, bits)
        for layer in sharing:
            what = "int8 weights" if bits == 8 else f"weights of {bits} bits"
            what += _ACTIVATIONS[mode] if layer in integer else ", float arithmetic"
            if layer is not sharing[0]:
                what += f", shared with {sharing[0].name}"
            changes.append(Change(layer.name, what, numbers if layer is sharing[0] else {}))
        store_int8(model, name, stored, scales, axis, bits)
    if plan is not None:
        for factor in plan.factors:  # first: a pair of all readers would be theirs, too
            readers = [product.node for product in products if factor in product.factors]
            insert_pair(factor, statistics.factors[factor.name], readers, signed=True)
        for node in plan.points:
            insert_pair(node, qparams[node], plan.readers[node])
        changes += [Change(product.name, _factors(product)) for product in products]
    elif mode == "dynamic":
        for data in dict.fromkeys(layer.data for layer in integer):
            insert_dynamic(data, [layer.node for layer in integer if layer.data is data])
    return changes


def _factors(product: Product) -> str:
    attention = op_name(product.node) == "scaled_dot_product_attention"
    return f"int8 {'queries and keys' if attention else 'factors'}"


_ACTIVATIONS = {"static": " and activations", "dynamic": ", activations on the range of each batch"}


def rounded(
    sharing: list[Layer],
    axis: int,
    bits: int,
    qparams: dict[fx.Node, QParams],
    statistics: CalibrationStatistics,
) -> tuple[Tensor, Tensor]:
    """(int8 weight, scales) of the weight that these layers share."""
    weight = sharing[0].weight.value()
    least = [_least_scale(layer, qparams) for layer in sharing]
    if one_scale(sharing):
        highest = max(float(torch.as_tensor(each).max()) for each in least)
        flat, scale = round_weight(weight.reshape(1, -1), 0, bits, highest)
        return flat.reshape(weight.shape), scale.repeat(weight.shape[axis])
    fitting = [each for each in least if isinstance(each, float) or len(each) == weight.shape[axis]]
    stored, scales = round_weight(weight, axis, bits, sum(fitting))
    names = tuple(each.name for each in sharing)
    if statistics.moments is None or not all(name in statistics.moments for name in names):
        return stored, scales
    known = statistics.adaptive.get(names)
    if known is not None and torch.equal(known[0], scales):
        return known[1], scales
    second: Any = sum(statistics.moments[name].second for name in names)
    groups = sharing[0].groups
    layer = sharing[0]
    if axis != range(weight.dim())[layer.roles.outputs]:
        return stored, scales
    given = (layer.matrix(weight), scales, layer.matrix(stored))
    rows, steps, start = (each.unflatten(0, (groups, -1)) for each in given)
    nearby = round_adaptively(rows, steps, start, second, 2 ** (bits - 1) - 1)
    found = layer.from_matrix(nearby.flatten(0, 1)).contiguous()
    statistics.adaptive[names] = scales, found
    return found, scales


@dataclass(frozen=True)
class Rounding:
    """Rounds a model and copies of it by the same statistics.

    Attributes:
        keep: patterns of layers that stay in float.
        reference: in floats.
        unbiased: on these samples, `limit` of them, biases make up for the mean error; None leaves them.
        integers: recurrent layers are meant for the int8 kernel, where there is one.
        target: where activations run in int8.
        left: layers that stay in float whatever else is asked, and why.
    """

    mode: str
    keep: tuple[str, ...]
    statistics: CalibrationStatistics
    reference: Model
    unbiased: Dataset | None
    limit: int | None
    integers: bool = False
    target: str | None = None
    left: Left = field(default_factory=dict)

    def chosen(self, model: Model) -> list[Layer]:
        """The layers that are rounded if no others are left."""
        return choose(model, (*self.keep, *self.left))[0]

    def chosen_products(self, model: Model) -> list[Product]:
        return choose_products(model, (*self.keep, *self.left), self.mode, self.target)[0]

    def chosen_recurrent(self, model: Model) -> list[RecurrentLayer]:
        return choose_recurrent(model, (*self.keep, *self.left))[0]

    def round(self, model: Model, left: Left) -> list[Change]:
        """In place, without the layers that are `left`."""
        left = {**left, **self.left}
        chosen, changes = choose(model, self.keep)
        wanted = [layer for layer in chosen if layer.name not in left]
        products, kept_products = choose_products(model, self.keep, self.mode, self.target)
        changes += kept_products
        multiplied = [product for product in products if product.name not in left]
        with edit.keeping_shapes(model):
            rounded = (
                round_layers(model, wanted, multiplied, self.mode, self.statistics)
                if wanted or multiplied
                else []
            )
            recurrent, skipped = choose_recurrent(model, self.keep)
            asked = [layer for layer in recurrent if layer.name not in left]
            rounded += round_recurrent(model, asked, self.statistics.bits, integers=self.integers)
        names = [layer.name for layer in chosen] + [layer.name for layer in recurrent]
        names += [product.name for product in products]
        kept = [Change(name, left[name], applied=False) for name in names if name in left]
        if self.unbiased is not None:
            correct_biases(model, self.reference, self.unbiased, self.limit)
        round_biases(model)
        return rounded + changes + skipped + kept

    def copy(self, left: Left) -> Model:
        """The reference, rounded."""
        copied = self.reference.copy()
        self.round(copied, left)
        return copied


def _numbers(weight: Tensor, stored: Tensor, scales: Tensor, axis: int, bits: int) -> dict[str, Any]:
    shape = [-1 if d == axis else 1 for d in range(weight.dim())]
    noise = float((weight - stored * scales.reshape(shape)).double().square().sum())
    power = float(weight.double().square().sum())
    return {
        "bits": bits,
        "bytes_before": 4 * weight.numel(),
        "bytes": stored.numel() * (4 if bits <= 4 else 8) // 8 + 4 * scales.numel(),
        "weight_sqnr_db": round(10 * math.log10(power / noise), 2) if noise and power else None,
    }


def _least_scale(layer: Layer, qparams: dict[fx.Node, QParams]) -> Tensor | float:
    """Weight scales, per output, from which on the layer's bias fits 32 bits."""
    given = qparams.get(layer.data) or (QParams.of(layer.data) if is_dequantized(layer.data) else None)
    if layer.bias is None or given is None or layer.bias.value().dim() != 1:
        return 0.0
    bias = layer.bias.value()
    return bias.where(bias.isfinite(), 0).abs().double() / (
        given.scale * 2**30
    )  # -inf is the least of 32 bits
