"""Weights of 4 bits by groups: the matrices of linear layers and embeddings, in the form that kernels know.

With data, each matrix is rounded for the inputs that the matrices before it, already rounded, give it: first
input by input, each error made up for by what is still to come (Frantar et al. 2023, "GPTQ"), then value by
value until no single one can be improved. Grids have the least squared error, weighted by the inputs' second
moments. Without data, every weight goes to the nearest value.

A matrix that is also looked up (an embedding that is the output layer too) is rounded for both: a row that is
looked up has the second moment 1, and both moments count alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.moments import RIDGE_OF_FEW, ROWS_OF_MOMENTS, Moments, with_ridge
from nncompress.analysis.observe.patches import input_rows
from nncompress.analysis.observe.seen_inputs import SeenInputs
from nncompress.analysis.observe.walk import Inputs
from nncompress.analysis.rounding.coordinate_descent import descend
from nncompress.analysis.rounding.gptq import elimination, round_in_order
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.formats.groups import Groups
from nncompress.ir.layers.weights import Layer, argument, layers, readers
from nncompress.passes.base import Change, Context
from nncompress.passes.quantize.choose import PRODUCTS, by_weight, choose
from nncompress.passes.quantize.equalization.norm_scales import NormScales
from nncompress.passes.quantize.matrices import Matrices
from nncompress.passes.quantize.options import check_divides

aten = torch.ops.aten
_MOST = 2**22  # weights that are rounded together: a few copies of them are held
_LEAST = 0.005  # a sweep of coordinate descent that lowers the error by less is the last
_PART = 64  # rows of a matrix that are summed up at a time, in float64


def check_groups(model: Model, keep: Collection[str], size: int) -> None:
    """Refuse a prepared model that has no such matrix, or one whose rows are no whole number of groups.

    Raises:
        UsageError
    """
    fitting = [
        layers_[0]
        for layers_ in by_weight(choose(model, keep)[0]).values()
        if not _reason_to_leave(model, layers_)
    ]
    if not fitting and not any(layer.weight.group_size for layer in _quantized(model)):
        raise UsageError(
            "quantize --group-size: no linear layer or embedding to round",
            remedy="leave --group-size out: --weight-bits 4 rounds every kind of layer, a scale per channel",
        )
    for layer in fitting:
        width = layer.weight.value().shape[0 if _is_turned(layer) else 1]
        check_divides(size, layer.name, width)


def round_by_groups(
    model: Model,
    keep: Collection[str],
    size: int,
    *,
    asymmetric: bool,
    nearest: bool,
    context: Context,
    stored: Matrices | None = None,
) -> list[Change]:
    """Round every such matrix of a prepared model, in place; the model still has to be refreshed.

    Args:
        keep: patterns of layers that stay in float.
        size: inputs that share a scale.
        asymmetric: with a zero point of their own, too.
        nearest: whatever the data.
        stored: where the matrices are, if not in the model.
    """
    stored = stored or Matrices(model)
    if stored.turned:
        _turn_products(model, keep)
    chosen, changes = choose(model, keep)
    matrices = by_weight(chosen)
    seen = None
    tied: Mapping[str, Moments] = {}
    if context.data is not None and not nearest:
        batches = context.data.input_batches(context.batch_size, context.limit)
        tied = _tied_moments(model, matrices, batches, context, stored)
        seen = SeenInputs(model, batches, context.seed, weights=stored.weights)
    reasons = {name: _reason_to_leave(model, each, stored.turned) for name, each in matrices.items()}
    alone = [each[0] for name, each in matrices.items() if len(each) == 1 and not reasons[name]]
    products = [layer for layer in alone if layer.kind in PRODUCTS]
    norms = NormScales(model, products, stored.value, size, asymmetric=asymmetric)
    stored.begin(matrices)
    for done, (name, layers_) in enumerate(matrices.items()):
        context.progress.step("rounding", done, len(matrices))
        if reasons[name]:
            what = f"skipped: {reasons[name]}"
            changes += [Change(each.name, what, applied=False) for each in layers_]
            stored.passed(name, what, norms)
            continue
        second = None if seen is None else _second_moment(layers_, seen, tied)
        scales = None if second is None else norms.of(layers_[0], second)
        numbers = _rounded(stored, layers_[0], size, asymmetric, second, scales)
        what = f"weights of 4 bits in groups of {size}, float arithmetic"
        for layer in layers_:
            first = layer is layers_[0]
            shared = "" if first else f", shared with {layers_[0].name}"
            changes.append(Change(layer.name, what + shared, numbers if first else {}))
        stored.passed(name, what, norms)
    context.progress.step("rounding", len(matrices), len(matrices))
    if seen is not None:
        context.warn(too_few("quantize", seen.rows))
    stored.store(norms)
    return changes


def _rounded(
    stored: Matrices,
    layer: Layer,
    size: int,
    asymmetric: bool,
    second: Tensor | None,
    scales: Tensor | None,
) -> dict[str, Any]:
    """Round the matrix of a layer, in place; the figures of it."""
    value, numbers = stored.known(layer.weight.name), {}
    if value is None:
        weight = stored.value(layer)
        if scales is not None and second is not None:
            weight = torch.cat([(rows * scales).float() for rows in weight.split(_PART)])
            second = second / scales / scales[:, None]
        importance = None if second is None else second.diagonal()
        groups = Groups.fit(weight, size, asymmetric=asymmetric, importance=importance)
        codes = _codes(weight, groups, second)
        value = groups.values(codes)
        numbers = _numbers(weight, value, codes, groups)
        stored.keep(layer.weight.name, codes, groups)
    stored.assign(layer, value, scales)
    return numbers


def _tied_moments(
    model: Model,
    matrices: Mapping[str, Sequence[Layer]],
    batches: Sequence[Inputs],
    context: Context,
    stored: Matrices,
) -> dict[str, Moments]:
    """Of what products multiply that share their matrix, as the float model makes it, by their names: layer
    after layer, so that weights which are read from disk are read once."""
    wanted = [layer for each in matrices.values() if len(each) > 1 for layer in each]
    found = {layer.name: Moments() for layer in wanted if layer.kind in PRODUCTS}
    if not found:
        return {}
    run = LayerwiseRunner(model, batches, weights=stored.weights)
    left = len(found)
    for layer in (layer for layer in layers(model) if layer.kind in PRODUCTS):
        moments = found.get(layer.name)
        generator = torch.Generator().manual_seed(context.seed + crc32(layer.name.encode()))
        for (value,) in run.values(layer.data):
            if moments is not None:
                moments.add(input_rows(layer, value, ROWS_OF_MOMENTS, generator))
        left -= moments is not None
        if not left:
            break
    return found


def _second_moment(layers_: Sequence[Layer], seen: SeenInputs, tied: Mapping[str, Moments]) -> Tensor | None:
    """E[x xᵀ] of what a matrix multiplies, float64 [in, in]; None of a table that is only looked up."""
    products = [layer for layer in layers_ if layer.kind in PRODUCTS]
    if not products:
        return None
    if len(layers_) == 1:
        return seen.second_moments(products[0])[0]
    moments = [with_ridge(tied[layer.name].second[0], RIDGE_OF_FEW) for layer in products]
    alike = torch.stack([moment / moment.diagonal().mean() for moment in moments]).mean(0)
    return alike if len(products) == len(layers_) else with_ridge(alike, 1.0)


def _codes(weight: Tensor, groups: Groups, second: Tensor | None) -> Tensor:
    if second is None:
        return groups.codes(weight)
    order, factor = elimination(second, torch.float32)  # between neighbouring values no more decides
    second = second.float()
    codes = []
    height = max(1, _MOST // weight.shape[1])
    for rows, own in zip(weight.split(height), groups.split(height)):
        start = round_in_order(rows, order, factor, own.nearest)
        codes.append(own.codes(descend(rows, start, second, own.nearest, least=_LEAST)))
    return torch.cat(codes)


def _numbers(weight: Tensor, value: Tensor, codes: Tensor, groups: Groups) -> dict[str, Any]:
    parts = list(zip(weight.split(_PART), value.split(_PART)))
    noise = sum(float((a - b).double().square().sum()) for a, b in parts)
    power = sum(float(a.double().square().sum()) for a, _ in parts)
    points = 0 if groups.zeros is None else groups.zeros.numel()
    return {
        "bits": 4,
        "group_size": groups.size,
        "bytes_before": 4 * weight.numel(),
        "bytes": (codes.numel() + points) // 2 + 4 * groups.scales.numel(),
        "weight_sqnr_db": round(10 * math.log10(power / noise), 2) if noise and power else None,
    }


def _quantized(model: Model) -> list[Layer]:
    return [layer for layer in layers(model) if layer.weight.quantized]


def _is_turned(layer: Layer) -> bool:
    """It stores its weight [in, out]."""
    return layer.kind in ("addmm", "mm", "matmul")


def _reason_to_leave(model: Model, layers_: Sequence[Layer], turned: bool = True) -> str:
    """Why a weight is not rounded by groups; "" where it is.

    Args:
        turned: one that is stored inputs first may be turned.
    """
    weight = layers_[0].weight
    if any(layer.kind not in (*PRODUCTS, "embedding") for layer in layers_):
        return "no kernel computes a convolution with weights by groups"
    if weight.value().dim() != 2:
        return "it multiplies a stack of matrices"
    if not any(map(_is_turned, layers_)):
        return ""
    if not turned:
        return "its matrix is stored inputs first, and outputs are what has scales"
    if not all(map(_is_turned, layers_)):
        return "layers read its weight along both of its dims"
    users = {user for node in readers(model, weight.name) for user in node.users}
    if users != {layer.node for layer in layers_}:
        return "something else reads its weight"
    if any(_bias(layer) is None for layer in layers_):
        return "its bias is no vector that is added as it is"
    return ""


def _bias(layer: Layer) -> tuple[object] | None:
    """What linear takes as its bias (maybe None), in a tuple; None where it cannot take it."""
    if layer.roles.bias is None:
        return (None,)
    bias: Any = argument(layer.node, layer.roles.bias)
    scaled = any(layer.node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))
    vector = isinstance(bias, fx.Node) and bias.meta["val"].shape == layer.node.meta["val"].shape[-1:]
    return (bias,) if vector and not scaled else None


def _turn_products(model: Model, keep: Collection[str]) -> None:
    """x @ W as linear(x, Wᵀ), so that every matrix stores the inputs of an output in a row."""
    turned = False
    for name, layers_ in by_weight(choose(model, keep)[0]).items():
        if _reason_to_leave(model, layers_) or not _is_turned(layers_[0]):
            continue
        for layer in layers_:
            bias = _bias(layer)
            assert bias is not None
            with edit.inserting_before(layer.node) as call:
                product = call(aten.linear.default, layer.data, layer.weight.source, *bias)
            edit.replace_node(layer.node, product)
        edit.replace_tensor(model, name, layers_[0].weight.value().T)
        turned = True
    if turned:
        model.refresh()
