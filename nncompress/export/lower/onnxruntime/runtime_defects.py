"""Graphs that ONNX Runtime 1.31's optimiser computes wrongly, written so that it leaves them alone.

`benchmarks/onnxruntime_defects.py` looks for such graphs.

- Pad with 0, then a pool: it makes a pool with pads of it, which are minus infinity for a MaxPool; with
  ceil_mode there may be a window less; where a pad is as large as the kernel it refuses to run it.
  A Pad that names its axes is not fused.
- a layer norm, spelled out, of a Cast: it makes a LayerNormalization of what was cast, whatever its type, and
  refuses it. Its square is written as a product, not a Pow.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncompress.export.lower.onnxruntime.edit import array, insert, producer, replace, store


def avoid_runtime_defects(graph: ir.Graph) -> None:
    """Rewrite in place; the values stay the same."""
    for node in list(graph):
        if node.op_type == "Pad":
            _name_axes(graph, node)
        elif node.op_type == "Pow":
            _multiply_cast(graph, node)


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
