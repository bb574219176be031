"""Say int8 the way ONNX Runtime looks for it; the values stay the same (a bias is rounded to 32 bits).

The runtime matches patterns node by node, so these forms of the same thing decide about an int8 kernel:

| exported                                        | looked for                                              |
|-------------------------------------------------|---------------------------------------------------------|
| DequantizeLinear without a zero point           | a zero point of 0                                       |
| Gemm with a float bias                          | int32 bias in units of input scale × weight scale       |
| MatMul of more than a matrix, Add of the bias   | Gemm over rows (`lower_products`)                       |
| Transpose(DequantizeLinear(weight))             | DequantizeLinear(transposed weight)                     |
| ReduceMean over all spatial axes                | GlobalAveragePool                                       |
| AveragePool that counts a padding of 0          | one that does not count it                              |
| AveragePool whose last window sticks out        | its float kernel (the 8-bit one divides by whole ones)  |
| DequantizeLinear, Slice or Pad, QuantizeLinear  | Slice or Pad of the 8-bit values                        |
| a scale per channel, all of them the same       | one scale, where the weight is read along several dims  |
| a scale that is computed                        | DynamicQuantizeLinear (`lower_dynamic`)                 |
| DequantizeLinear of weights that floats meet    | Cast and Mul, computed on loading (`lower_weights`)     |
| … cut into gates, of an LSTM or GRU             | the same of the codes in its order (`lower_recurrent`)  |
| float weights and bias between 8-bit values     | the bias in integers (`protect_floats`)                 |

And for a target whose `rewrites` have them, since other kernels, or other machines, gain nothing by them:

| exported                                        | looked for                                              |
|-------------------------------------------------|---------------------------------------------------------|
| stride-2 Conv over few channels                 | stride-1 Conv over 2×2 blocks (`stem`)                  |
| AveragePool of 8-bit values                     | depthwise Conv with weights of 1 (`lower_pools`)        |
| MatMul of more than a matrix, Add of the bias   | the same, in float (`matrices`)                         |
| Gemm without a bias, or the same for all units  | one with a bias that differs by 1e-30 (`lower_biases`)  |
| LSTM of what is rounded to its own range        | DynamicQuantizeLSTM, of its own (`lower_recurrent`)     |
| x · sigmoid(x) of 8-bit values                  | QuickGelu, of its own (`lower_silu`)                    |
| channels that are no multiple of 16, or of 4    | zero channels up to the next (`lower_channels`)         |
| a zero point of 0, where the CPU has AMX        | one of −1, where the tiles pay (`lower_tiles`)          |
| signed weights, where the CPU has no VNNI       | unsigned ones, where sums overflow (`lower_saturating`) |
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nncompress.exporting.lower.onnxruntime.dynamic import lower_dynamic
from nncompress.exporting.lower.onnxruntime.edit import array, insert, producer, replace, store, turned
from nncompress.exporting.lower.onnxruntime.int8.biases import lower_biases
from nncompress.exporting.lower.onnxruntime.int8.channels import lower_channels
from nncompress.exporting.lower.onnxruntime.int8.pools import lower_pools
from nncompress.exporting.lower.onnxruntime.int8.products import gemm_over_rows, is_over_rows
from nncompress.exporting.lower.onnxruntime.int8.protect_floats import protect_floats
from nncompress.exporting.lower.onnxruntime.int8.recurrent_layers import lower_recurrent
from nncompress.exporting.lower.onnxruntime.int8.saturating import lower_saturating
from nncompress.exporting.lower.onnxruntime.int8.silu import lower_silu
from nncompress.exporting.lower.onnxruntime.int8.stem import block_pads, fits, spread_kernel
from nncompress.exporting.lower.onnxruntime.int8.tiles import lower_tiles
from nncompress.exporting.lower.onnxruntime.weights import lower_weights
from nncompress.targets import Rewrite

INT32_TOP = 2**31 - 1


def lower_int8(model: ir.Model, rewrites: Collection[Rewrite] = ()) -> dict[str, int]:
    """Rewrite the tables above in place. A model without DequantizeLinear is not touched.

    Args:
        rewrites: of the target, those of the second table.
    Returns:
        of these rewrites, how often each was applied.
    """
    graph = model.graph
    if not any(node.op_type == "DequantizeLinear" for node in graph):
        return {}
    lower_dynamic(graph)
    kept = 0
    for node in list(graph):  # a rewrite may remove nodes that come later
        if node.graph is None:
            continue
        if node.op_type == "DequantizeLinear":
            _say_one_scale(graph, node)
            _spell_out_zero(graph, node)
        elif node.op_type == "Gemm":
            _round_bias(graph, node)
        elif node.op_type == "MatMul":
            _transpose_stored(graph, node)
            if "matrices" in rewrites:
                kept += is_over_rows(node)
            elif (gemm := gemm_over_rows(graph, node)) is not None:
                _round_bias(graph, gemm)
        elif node.op_type == "ReduceMean":
            _pool_globally(graph, node)
        elif node.op_type == "AveragePool":
            _count_pixels(node)
            _stay_float(graph, node)
    for node in list(graph):  # in order, so that a chain of movements is lowered from its start
        if node.op_type in ("Slice", "Pad"):
            _move_8_bit(graph, node)
    own = {"blocks": _gather_blocks, "pools": lower_pools, "channels": lower_channels, "silu": lower_silu}
    own |= {"biases": lower_biases}
    applied = {name: lower(graph) for name, lower in own.items() if name in rewrites}
    recurrent = lower_recurrent(graph, integers="lstm" in rewrites)
    applied |= {"lstm": recurrent, "matrices": kept}
    lower_weights(graph)
    protect_floats(graph)
    machine = {"amx-tiles": lower_tiles, "unsigned-weights": lower_saturating}
    applied |= {name: lower(graph) for name, lower in machine.items() if name in rewrites}
    RemoveUnusedNodesPass()(model)
    return {name: count for name, count in applied.items() if count}


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    return producer(value, "DequantizeLinear")


def _say_one_scale(graph: ir.Graph, dequantize: ir.Node) -> None:
    """Of a weight that is read along several dims: no kernel takes a scale per channel for both."""
    value, several = dequantize.inputs[1], len(list(dequantize.outputs[0].uses())) > 1
    scale = array(value)
    if not several or value is None or scale is None or scale.ndim != 1 or len(scale) < 2 or np.ptp(scale):
        return
    dequantize.replace_input_with(1, store(graph, f"{value.name}_one", scale[:1].reshape(())))
    dequantize.resize_inputs(2)
    dequantize.attributes.pop("axis", None)


def _spell_out_zero(graph: ir.Graph, dequantize: ir.Node) -> None:
    stored, scale = dequantize.inputs[0], array(dequantize.inputs[1])
    if (
        len(dequantize.inputs) > 2
        or stored is None
        or stored.dtype is None
        or scale is None
        or scale.ndim > 1
    ):
        return
    zero = store(graph, f"{stored.name}_zero", np.zeros(scale.shape, stored.dtype.numpy()))
    dequantize.resize_inputs(3)
    dequantize.replace_input_with(2, zero)


def _round_bias(graph: ir.Graph, gemm: ir.Node) -> None:
    data, weight = _dequantize(gemm.inputs[0]), _dequantize(gemm.inputs[1])
    bias = array(gemm.inputs[2]) if len(gemm.inputs) > 2 else None
    if data is None or weight is None or bias is None or bias.ndim != 1:
        return
    scales = [array(node.inputs[1]) for node in (data, weight)]
    if scales[0] is None or scales[1] is None:
        return
    bias, unit = np.broadcast_arrays(bias, (scales[0] * scales[1]).astype(np.float32))
    stored = np.rint(bias.astype(np.float64) / unit)
    if np.abs(stored).max(initial=0) > INT32_TOP:
        return
    name = gemm.inputs[2].name  # type: ignore[union-attr]
    inputs = [
        store(graph, f"{name}_int32", stored.astype(np.int32)),
        store(graph, f"{name}_scale", np.ascontiguousarray(unit)),
    ]
    node = ir.node("DequantizeLinear", inputs, {"axis": 0})
    gemm.replace_input_with(2, insert(graph, gemm, node, gemm.inputs[2]))


def _transpose_stored(graph: ir.Graph, matmul: ir.Node) -> None:
    transpose = matmul.inputs[1].producer() if matmul.inputs[1] is not None else None
    if transpose is None or transpose.op_type != "Transpose":
        return
    source = _dequantize(transpose.inputs[0])
    if source is None or _dequantize(matmul.inputs[0]) is None:
        return
    weight = source.inputs[0]
    if weight is None or weight.shape is None or len(weight.shape) != 2:
        return
    axis = {"axis": 1 - source.attributes["axis"].as_int() % 2} if "axis" in source.attributes else {}
    inputs = [turned(graph, matmul, source), *source.inputs[1:]]
    node = ir.node("DequantizeLinear", inputs, axis)
    matmul.replace_input_with(1, insert(graph, matmul, node, transpose.outputs[0]))


def _stay_float(graph: ir.Graph, pool: ir.Node) -> None:
    """The 8-bit kernel is right about windows that stick out in images without padding alone (`ir.pools`)."""
    given, result = pool.attributes, pool.outputs[0]
    outward = "ceil_mode" in given and given["ceil_mode"].as_int()
    image = len(given["kernel_shape"].as_ints()) == 2
    padded = "pads" in given and any(given["pads"].as_ints())
    counted = "count_include_pad" in given and given["count_include_pad"].as_int()
    if not outward or (image and not (padded and counted)):
        return
    for use in list(result.uses()):
        if use.node.op_type == "QuantizeLinear":
            least = store(graph, f"{pool.name}_least", np.array(np.finfo(np.float32).min, np.float32))
            same = insert(graph, use.node, ir.node("Max", [result, least]), result)
            use.node.replace_input_with(use.idx, same)


def _pool_globally(graph: ir.Graph, mean: ir.Node) -> None:
    data = mean.inputs[0]
    axes = array(mean.inputs[1]) if len(mean.inputs) > 1 else None
    if data is None or data.shape is None or axes is None or _dequantize(data) is None:
        return
    rank = len(data.shape)
    if rank < 3 or sorted(int(a) % rank for a in axes) != list(range(2, rank)):
        return
    pooled = insert(graph, mean, ir.node("GlobalAveragePool", [data]))
    pooled.type = data.type
    kept = bool(mean.attributes["keepdims"].as_int())
    users = [use.node for use in mean.outputs[0].uses()]
    if not kept and len(users) == 1 and users[0].op_type == "QuantizeLinear":  # flatten the 8-bit values
        rounded = insert(graph, mean, ir.node("QuantizeLinear", [pooled, *users[0].inputs[1:]]))
        flat = insert(graph, mean, ir.node("Flatten", [rounded], {"axis": 1}), users[0].outputs[0])
        users[0].outputs[0].replace_all_uses_with(flat)
        graph.remove(users[0], safe=True)
    elif not kept:
        pooled = insert(graph, mean, ir.node("Flatten", [pooled], {"axis": 1}), mean.outputs[0])
    replace(mean.outputs[0], pooled)
    graph.remove(mean, safe=True)


def _count_pixels(pool: ir.Node) -> None:
    """Without padding, counting it changes nothing, but then the int8 kernel counts beyond the edge, too."""
    pads = pool.attributes["pads"].as_ints() if "pads" in pool.attributes else []
    if not any(pads):
        pool.attributes.pop("count_include_pad", None)


def _move_8_bit(graph: ir.Graph, move: ir.Node) -> None:
    source = _dequantize(move.inputs[0])
    users = [use.node for use in move.outputs[0].uses()]
    if source is None or len(users) != 1 or users[0].op_type != "QuantizeLinear":
        return
    (quantize,) = users
    if any(not _same(a, b) for a, b in zip(source.inputs[1:], quantize.inputs[1:], strict=True)):
        return
    if move.op_type == "Pad":
        given = array(move.inputs[2]) if len(move.inputs) > 2 else np.float32(0)
        mode = move.attributes.get("mode")
        if given is None or np.any(given != 0) or (mode is not None and mode.as_string() != "constant"):
            return
        zero = source.inputs[2]
        padded = [source.inputs[0], move.inputs[1], zero, *move.inputs[3:]]
        node = ir.node("Pad", padded, {"mode": "constant"})
    else:
        node = ir.node("Slice", [source.inputs[0], *move.inputs[1:]])
    result = insert(graph, move, node)
    result.shape = move.outputs[0].shape
    result.type = source.inputs[0].type  # type: ignore[union-attr]
    quantize.outputs[0].replace_all_uses_with(result)
    graph.remove([quantize, move], safe=True)


def _gather_blocks(graph: ir.Graph) -> int:
    """How many convolutions now go over blocks of pixels."""
    return sum(_go_over_blocks(graph, node) for node in list(graph) if node.op_type == "Conv")


def _go_over_blocks(graph: ir.Graph, conv: ir.Node) -> bool:
    source, kernel = _dequantize(conv.inputs[0]), _dequantize(conv.inputs[1])
    weight = array(kernel.inputs[0]) if kernel is not None else None
    if source is None or kernel is None or weight is None:
        return False
    shape = conv.inputs[0].shape  # type: ignore[union-attr]
    if not fits(conv, weight, shape):
        return False
    assert shape is not None
    pads = list(conv.attributes["pads"].as_ints()) if "pads" in conv.attributes else [0, 0, 0, 0]
    stored = store(graph, f"{kernel.inputs[0].name}_blocks", spread_kernel(weight, (pads[0], pads[1])))  # type: ignore[union-attr]
    sides = [
        block_pads(k, int(s), b, e) for k, s, b, e in zip(weight.shape[2:], shape[2:], pads[:2], pads[2:])
    ]
    blocks = insert(graph, conv, ir.node("SpaceToDepth", [source.inputs[0]], {"blocksize": 2}))
    data = insert(graph, conv, ir.node("DequantizeLinear", [blocks, *source.inputs[1:]]))
    dequantized = ir.node("DequantizeLinear", [stored, *kernel.inputs[1:]], {"axis": 0})
    conv.replace_input_with(0, data)
    conv.replace_input_with(1, insert(graph, conv, dequantized))
    conv.attributes["strides"] = ir.AttrInt64s("strides", [1, 1])
    conv.attributes["pads"] = ir.AttrInt64s("pads", [s[0] for s in sides] + [s[1] for s in sides])
    conv.attributes.pop("kernel_shape", None)
    return True


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b:
        return True
    left, right = array(a), array(b)
    return left is not None and right is not None and bool(np.array_equal(left, right))
