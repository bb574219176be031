"""Say a model the way XNNPACK looks for it, so that ExecuTorch hands it over whole and in int8.

| the model                                          | looked for                                         |
|----------------------------------------------------|----------------------------------------------------|
| unsigned activations                               | signed ones, zero point − 128: the same values     |
| weight scales without zero points                  | zero points of 0                                   |
| concatenated values on grids of their own          | one grid (`lower_concat`)                          |
| one dequantize with several readers                | one dequantize per reader                          |
| linear layer that reads int8 and writes float      | its input rounded anew at each call, per row       |
| int8 weight of a layer without an integer kernel   | the float weight                                   |
| int8 weights of an LSTM or GRU                     | floats; inputs as they are                         |
| recurrent layers and cells                         | their steps (`write_steps`)                        |
| mean over height and width                         | the mean with both dims kept, then flatten         |
| several parts at once (chunk, split, unbind)       | a slice for each (`slice_parts`)                   |
| weights that the graph computes                    | what comes out (weight norm, say)                  |
| one weight of layers of several kinds              | one per kind: each has a memory layout of its own  |
| padding that wraps around                          | slices and a concatenation (`lay_ends_beside`)     |
| every s-th pixel (slices), zero channels behind it | 1×1 convolution of stride s with weights 0 and 1   |

The last one is a residual network's parameter-free shortcut (He et al. 2015, option A). The delegate has no
strided slice, and would have to stop before and start again behind it. With channels added the convolution
is dense, and yet at most a 27th of the multiplications of the block that it leads around.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from nncompress.exporting.lower.wrapped import lay_ends_beside
from nncompress.exporting.lower.xnnpack.concat import share_grids
from nncompress.exporting.lower.xnnpack.parts import slice_parts
from nncompress.exporting.lower.xnnpack.recurrent import write_steps
from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.edit.computed import store_computed_weights
from nncompress.ir.edit.fold import fold_batch_norms
from nncompress.ir.formats.qdq import QParams, is_dequantized, is_dynamic, make_signed, ops
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.recurrent import RecurrentLayer, recurrent_layers
from nncompress.ir.layers.weights import Layer, argument, layers

aten = torch.ops.aten
CLAMPS = {"relu", "relu6", "hardtanh"}  # what the delegate fuses into the op before
INTEGER_KERNELS = {"conv1d", "conv2d", "linear"}
PADS = {"pad", "constant_pad_nd"}
MANY = 2**31 - 1  # the end of a slice that has no end


def lower_xnnpack(model: Model) -> Model:
    """A copy of `model` rewritten by the table above.

    Values change by how inputs of linear layers and concatenated values are rounded, and by nothing else.
    """
    lowered = model.copy()
    store_computed_weights(lowered, read_elsewhere=True)
    _untie_kinds(lowered)
    fold_batch_norms(lowered)
    for recurrent in list(recurrent_layers(lowered)):
        _compute_in_floats(lowered, recurrent)
    lowered.refresh()
    write_steps(lowered)
    slice_parts(lowered.graph)
    lay_ends_beside(lowered.graph)
    for node in list(lowered.graph.nodes):
        if is_dequantized(node):
            _round_once(node)
    for node in list(lowered.graph.nodes):
        if op_name(node) == "slice" and node.users:
            _pick_by_convolution(lowered, node)
        elif op_name(node) == "mean":
            _keep_dims(node)
    lowered.refresh()
    for layer in list(layers(lowered)):
        if layer.weight.quantized:
            _choose_arithmetic(lowered, layer)
    lowered.refresh()
    share_grids(lowered.graph)
    for node in list(lowered.graph.nodes):
        _say_signed(lowered, node)
    for node in list(lowered.graph.nodes):
        if op_name(node).startswith("dequantize_per_"):
            _one_per_reader(node)
    lowered.graph.lint()
    lowered.graph_module.recompile()
    return lowered


def _untie_kinds(model: Model) -> None:
    """The delegate lays a weight out for the first layer that reads it; another kind reads it wrongly, or its
    process ends."""
    kinds: dict[int, dict[str, str]] = {}  # of a tensor: kind -> the name by which layers of it read it
    for layer in list(layers(model)):
        weight = layer.weight
        if weight.quantized:
            continue
        names = kinds.setdefault(id(model.tensor(weight.name)), {layer.kind: weight.name})
        if layer.kind not in names:
            names[layer.kind] = edit.add_tensor(model, f"{weight.name}_of_{layer.kind}", weight.value())
        if names[layer.kind] != weight.name:
            own = edit.read_tensor(model, names[layer.kind], layer.node)
            layer.node.replace_input_with(weight.source, own)


def _compute_in_floats(model: Model, layer: RecurrentLayer) -> None:
    """A recurrent layer has no integer kernel, nor one for weights that are dequantized when it runs."""
    for weight in layer.matrices:
        if weight.quantized and weight.source.users:  # none: another call of the layer came first
            name = edit.add_tensor(model, f"{weight.name}_float", weight.value(), trainable=False)
            edit.replace_node(weight.source, edit.read_tensor(model, name, weight.source))
    pair = layer.data
    if op_name(pair) == "dequantize_per_tensor" and is_dynamic(pair):
        layer.node.replace_input_with(pair, pair.all_input_nodes[0].all_input_nodes[0])


# -- movement ----------------------------------------------------------------------------------------------


def _round_once(dequantize: fx.Node) -> None:
    """Slices of rounded values are rounded: what only slices and pads read needs no rounding in between."""
    quantize: Any = dequantize.args[0]
    source = quantize.args[0]
    origin = source
    while op_name(origin) == "slice":
        origin = origin.args[0]
    again = origin is not source and is_dequantized(origin) and QParams.of(origin) == QParams.of(dequantize)
    if again and all(op_name(user) in PADS | {"slice"} for user in dequantize.users):
        edit.replace_node(dequantize, source)
        if not quantize.users:
            quantize.graph.erase_node(quantize)


def _pick_by_convolution(model: Model, first: fx.Node) -> None:
    """Replace a chain of slices that takes every s-th row and column, and the channel padding behind it."""
    source: Any = first.args[0]
    value = source.meta.get("val")  # None behind a convolution that was put in just now
    if value is None or value.dim() != 4 or not value.is_floating_point():
        return
    stride, last = [1, 1], first
    for node in _chain(first):
        dim, start, end, step = (argument(node, position) for position in (1, 2, 3, 4))
        whole = not start and (end is None or not isinstance(end, int) or end >= MANY)
        if op_name(node) != "slice" or dim not in (2, 3) or not whole:
            break
        stride[int(dim) - 2] *= int(step)  # type: ignore[call-overload]
        last = node
    if stride == [1, 1] or not isinstance(value.shape[1], int):
        return
    channels, before, behind = value.shape[1], 0, 0
    (reader,) = last.users if len(last.users) == 1 else (None,)
    if reader is not None and (added := _added_channels(reader)) is not None:
        last, (before, behind) = reader, added
    dense = before + behind > 0
    total = before + channels + behind
    weight = torch.ones(channels, 1, 1, 1)
    if dense:
        weight = torch.zeros(total, channels, 1, 1)
        weight[before : before + channels, :, 0, 0] = torch.eye(channels)
    rounded = is_dequantized(source) and all(op_name(user) == "quantize_per_tensor" for user in last.users)
    stored = weight.to(torch.int8 if rounded else value.dtype)
    name = edit.add_tensor(model, f"{first.name}.weight", stored, trainable=False)
    taken = edit.read_tensor(model, name, first)
    if rounded:
        ones = edit.read_tensor(
            model, edit.add_tensor(model, f"{first.name}.scale", torch.ones(total), trainable=False), first
        )
    with edit.inserting_before(first) as call:
        if rounded:
            taken = call(ops.dequantize_per_channel.default, taken, ones, None, 0, -127, 127, torch.int8)
        groups = 1 if dense else channels
        picked = call(aten.conv2d.default, source, taken, None, stride, [0, 0], [1, 1], groups)
    edit.replace_node(last, picked)


def _chain(node: fx.Node) -> Iterator[fx.Node]:
    """`node`, its only reader, that one's only reader, …"""
    while True:
        yield node
        if len(node.users) != 1:
            return
        (node,) = node.users


def _added_channels(node: fx.Node) -> tuple[int, int] | None:
    """(before, behind) where the node pads the channels of an image, and nothing else, with zeros."""
    if op_name(node) not in PADS:
        return None
    value = argument(node, 3) if op_name(node) == "pad" else argument(node, 2)
    mode = argument(node, 2) if op_name(node) == "pad" else "constant"
    amounts: Any = argument(node, 1)
    if mode != "constant" or value not in (None, 0, 0.0) or len(amounts) != 6 or any(amounts[:4]):
        return None
    if not all(isinstance(a, int) and a >= 0 for a in amounts[4:]):
        return None
    return amounts[4], amounts[5]


def _keep_dims(mean: fx.Node) -> None:
    """The delegate averages [N, C, H, W] to [N, C, 1, 1] and nothing else."""
    source: Any = mean.args[0]
    dims: Any = argument(mean, 1) or ()  # over all of them
    value = source.meta["val"]
    if value.dim() != 4 or not value.is_floating_point() or argument(mean, 2) or mean.kwargs:
        return
    if sorted(d % 4 for d in dims) != [2, 3]:
        return
    quantize = next(iter(mean.users)) if len(mean.users) == 1 else mean
    rounded = op_name(quantize) == "quantize_per_tensor"
    with edit.inserting_before(mean) as call:
        flat = call(aten.mean.dim, source, [-1, -2], True)
        if rounded:  # flatten what is rounded: the mean is an integer kernel only where a rounding follows
            flat = call(ops.quantize_per_tensor.default, flat, *quantize.args[1:])
            flat = call(ops.dequantize_per_tensor.default, flat, *quantize.args[1:])
        flat = call(aten.flatten.using_ints, flat, 1)
    edit.replace_node(mean, flat)


# -- arithmetic --------------------------------------------------------------------------------------------


def _choose_arithmetic(model: Model, layer: Layer) -> None:
    """Leave the layer in static int8, round its input at each call, or give it its float weight."""
    node, data = layer.node, layer.data
    dynamic = op_name(data) == "dequantize_per_tensor" and isinstance(data.args[1], fx.Node)
    static = is_dequantized(data) and not dynamic
    if layer.kind in INTEGER_KERNELS and static and _written_rounded(node):
        return
    if layer.kind == "linear" and (static or dynamic):
        _round_input_at_each_call(layer)
        return
    if dynamic:  # a convolution, which then runs in float as a whole
        node.replace_input_with(data, data.args[0].args[0])  # type: ignore[union-attr,arg-type]
    name = edit.add_tensor(model, f"{layer.weight.name}_float", layer.weight.value(), trainable=False)
    node.replace_input_with(layer.weight.source, edit.read_tensor(model, name, node))


def _written_rounded(node: fx.Node) -> bool:
    """Rounding follows, with at most a clamp in between, and nobody reads the value before it."""
    readers = list(node.users)
    if len(readers) == 1 and op_name(readers[0]) in CLAMPS:
        readers = list(readers[0].users)
    return len(readers) == 1 and op_name(readers[0]) == "quantize_per_tensor"


def _round_input_at_each_call(layer: Layer) -> None:
    """Instead of what rounds its input now: int8 inputs with the range of each row, and a float result.

    Where another layer wrote the input, a calibrated rounding stays: without it that layer has no kernel.
    """
    quantize: Any = layer.data.args[0]
    source = writer = quantize.args[0]
    while op_name(writer) in CLAMPS:
        writer = writer.args[0]
    if op_name(writer) in INTEGER_KERNELS and not isinstance(quantize.args[1], fx.Node):
        source = layer.data
    with edit.inserting_before(layer.node) as call:
        grid = call(ops.choose_qparams.tensor, source, -128, 127, torch.finfo(torch.float32).eps, torch.int8)
        scale, zero = (call(operator.getitem, grid, position) for position in (0, 1))
        bounds = (scale, zero, -128, 127, torch.int8)
        rounded = call(ops.quantize_per_tensor.tensor, source, *bounds)
        value = call(ops.dequantize_per_tensor.tensor, rounded, *bounds)
    layer.node.replace_input_with(layer.data, value)


# -- integers ----------------------------------------------------------------------------------------------


def _say_signed(model: Model, node: fx.Node) -> None:
    make_signed(node)
    if op_name(node) == "dequantize_per_channel" and node.args[2] is None:
        scales: Any = node.args[1]
        zeros = torch.zeros(model.tensor(scales.target).shape, dtype=torch.int64)
        name = edit.add_tensor(model, f"{scales.target}_zero", zeros, trainable=False)
        edit.set_argument(node, 2, edit.read_tensor(model, name, node))


def _one_per_reader(dequantize: fx.Node) -> None:
    """The delegate takes a dequantize for part of the one op behind it."""
    for reader in list(dequantize.users)[1:]:
        with edit.inserting_before(reader) as call:
            reader.replace_input_with(dequantize, call(dequantize.target, *dequantize.args))
