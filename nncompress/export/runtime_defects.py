"""Graphs that ONNX Runtime 1.31's optimiser computes wrongly, written so that it leaves them alone.

`benchmarks/onnxruntime_defects.py` looks for such graphs.

- Pad with 0, then a pool: it makes a pool with pads of it, which are minus infinity for a MaxPool; with
  ceil_mode there may be a window less; where a pad is as large as the kernel it refuses to run it.
  A Pad that names its axes is not fused.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncompress.export.onnx_edit import store


def avoid_runtime_defects(graph: ir.Graph) -> None:
    """Rewrite in place; the values stay the same."""
    for node in list(graph):
        if node.op_type == "Pad":
            _name_axes(graph, node)


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
