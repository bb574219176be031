"""Average pools of 8-bit values, as convolutions of each channel alone with weights of 1.

ONNX Runtime's int8 average pool goes through the values one by one; its depthwise kernel, which adds the same
integers, took a fifth of the time or less (`benchmarks/int8/channels.py`). A pool over the whole image has a
kernel of its own, which is as fast.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import insert, producer, store

SUFFIX = " as a convolution"  # in the name of such a node, which is no layer


def lower_pools(graph: ir.Graph) -> int:
    """Rewrite in place, how many; the values stay the same."""
    pools = [node for node in graph if node.op_type == "AveragePool" and _fits(node)]
    for pool in pools:
        _convolve(graph, pool)
    return len(pools)


def is_pool(name: str) -> bool:
    """Is the node of this name a pool that became a convolution?"""
    return name.endswith(SUFFIX)


def _fits(pool: ir.Node) -> bool:
    result = pool.outputs[0]
    users = [use.node.op_type for use in result.uses()]
    shape = result.shape
    if producer(pool.inputs[0], "DequantizeLinear") is None or users != ["QuantizeLinear"]:
        return False
    if shape is None or not isinstance(shape[1], int) or all(size == 1 for size in shape[2:]):
        return False
    given = pool.attributes
    padded = "pads" in given and any(given["pads"].as_ints())
    if padded and not ("count_include_pad" in given and given["count_include_pad"].as_int()):
        return False
    automatic = "auto_pad" in given and given["auto_pad"].as_string() != "NOTSET"
    return not automatic and not ("ceil_mode" in given and given["ceil_mode"].as_int())


def _convolve(graph: ir.Graph, pool: ir.Node) -> None:
    channels: int = pool.outputs[0].shape[1]  # type: ignore[index, assignment]
    kernel = list(pool.attributes["kernel_shape"].as_ints())
    inputs = [
        store(graph, f"{pool.name}_ones", np.ones((channels, 1, *kernel), np.int8)),
        store(graph, f"{pool.name}_share", np.array(1 / prod(kernel), np.float32)),
        store(graph, f"{pool.name}_zero", np.array(0, np.int8)),
    ]
    weight = insert(graph, pool, ir.node("DequantizeLinear", inputs))
    kept = {
        name: pool.attributes[name] for name in ("strides", "pads", "dilations") if name in pool.attributes
    }
    conv = ir.node("Conv", [pool.inputs[0], weight], {"group": channels})
    conv.attributes.update(kept)
    conv.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", kernel)
    name = f"{pool.name}{SUFFIX}"
    result = insert(graph, pool, conv, pool.outputs[0])
    conv.name = name
    pool.outputs[0].replace_all_uses_with(result)
    graph.remove(pool, safe=True)
