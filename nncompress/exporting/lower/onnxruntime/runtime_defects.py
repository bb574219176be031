"""Graphs that ONNX Runtime 1.31's optimiser computes wrongly, written so that it leaves them alone.

`benchmarks/onnx_ops/defects.py` looks for such graphs.

- Pad with 0, then a pool: it makes a pool with pads of it, which are minus infinity for a MaxPool; with
  ceil_mode there may be a window less; where a pad is as large as the kernel it refuses to run it.
  A Pad that names its axes is not fused.
- a layer norm, spelled out, of a Cast: it makes a LayerNormalization of what was cast, whatever its type, and
  refuses it. Its square is written as a product, not a Pow.
- Clip with one bound: the other is the greatest finite number, as ONNX says too, so that an infinity (a class
  that is masked out) becomes 3.4e38. It is written as a Relu, a Max or a Min.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import array, insert, producer, replace, store


def avoid_runtime_defects(graph: ir.Graph) -> None:
    """Rewrite in place; the values stay the same."""
    for node in list(graph):
        if node.op_type == "Pad":
            _name_axes(graph, node)
        elif node.op_type == "Pow":
            _multiply_cast(graph, node)
        elif node.op_type == "Clip":
            _bound_one_side(graph, node)


def _name_axes(graph: ir.Graph, pad: ir.Node) -> None:
    """`Pad_Fusion` takes only pads that are said for all axes without naming them."""
    readers = {use.node.op_type for use in pad.outputs[0].uses()}
    shape = pad.inputs[0].shape if pad.inputs[0] is not None else None
    if (
        not readers & {"MaxPool", "AveragePool"}
        or (len(pad.inputs) > 3 and pad.inputs[3] is not None)
        or shape is None
    ):
        return
    axes = store(graph, f"{pad.name}_axes", np.arange(len(shape), dtype=np.int64))
    pad.resize_inputs(4)
    pad.replace_input_with(3, axes)


def _multiply_cast(graph: ir.Graph, power: ir.Node) -> None:
    base, exponent = power.inputs[0], array(power.inputs[1])
    centred = producer(base, "Sub")
    if base is None or centred is None or exponent is None or exponent.size != 1 or exponent.item() != 2:
        return
    if producer(centred.inputs[0], "Cast") is not None:
        square = insert(graph, power, ir.node("Mul", [base, base]), power.outputs[0])
        replace(power.outputs[0], square)
        graph.remove(power, safe=True)


def _bound_one_side(graph: ir.Graph, clip: ir.Node) -> None:
    data, low, high = (*clip.inputs, None, None)[:3]
    bound = high if low is None else low
    if data is None or bound is None or (low is not None and high is not None):
        return
    if data.dtype is None or not data.dtype.is_floating_point():
        return
    stored = array(bound)
    if low is not None and stored is not None and stored.size == 1 and stored.item() == 0:
        node = ir.node("Relu", [data])
    else:
        node = ir.node("Min" if low is None else "Max", [data, bound])
    replace(clip.outputs[0], insert(graph, clip, node, clip.outputs[0]))
    graph.remove(clip, safe=True)
