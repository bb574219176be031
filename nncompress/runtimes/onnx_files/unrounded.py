"""Quantized files without their rounding: what tells whether one that rounding takes apart is right.

Where outputs hang on the last bits of what is rounded, a right file is as far from the graph as the graph is
from itself, and their distance tells little. But with the rounding of activations taken out of both, the file
has to agree as a file in float32 does, which shows a wrong weight, scale of a weight, or op; and the steps
that it rounded by have to be the graph's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name

MOST_BYTES = 2**31 - 2**20  # of a file in one message
_Steps = set[tuple[float, int]]  # of quantization: (scale, zero point from the least integer)


def write_unrounded(model: Model, path: Path, to: Path) -> str:
    """Write the file at `path` without its rounding of activations.

    Returns:
        "", or why not: it has other steps than the graph of `model`, or they cannot be told.
    """
    too_large = "it cannot be compared without rounding: it is larger than 2 GiB"
    if path.stat().st_size > MOST_BYTES:
        return too_large
    file = onnx.load(path)
    steps, found = _steps_of(model), _take_out(file.graph)
    if steps is None or found is None:
        return "it cannot be compared without rounding: it has steps that are computed, or branches"
    if found != steps:
        return "it rounds activations by other steps than the graph"
    try:
        onnx.save(file, to)
    except ValueError:  # with its external data
        return too_large
    return ""


def _steps_of(model: Model) -> _Steps | None:
    found = set()
    for node in model.graph.nodes:
        if op_name(node) == "quantize_per_tensor":
            scale, zero, least = node.args[1:4]
            if not isinstance(scale, float) or not isinstance(zero, int):
                return None
            found.add((float(np.float32(scale)), zero - least))
    return found


def _take_out(graph: onnx.GraphProto) -> _Steps | None:
    """Join what pairs of QuantizeLinear and DequantizeLinear stand between; their steps.

    None: it holds subgraphs, or steps that are computed.
    """
    stored = {each.name: each for each in graph.initializer}
    instead: dict[str, str] = {}
    codes: set[str] = set()  # of activations; those of weights may be unpacked and moved, too
    found: _Steps = set()
    kept = []
    for node in graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            return None
        reads_codes = not codes.isdisjoint(node.input)
        rounds = node.op_type == "QuantizeLinear"
        ends = reads_codes and node.op_type == "DequantizeLinear"
        if rounds or (reads_codes and not ends):
            codes.update(node.output)
        if not (rounds or ends):
            kept.append(node)
            continue
        instead[node.output[0]] = instead.get(node.input[0], node.input[0])
        if node.op_type == "QuantizeLinear":
            if len(node.input) < 3 or not set(node.input[1:3]) <= set(stored):
                return None
            scale, zero = (numpy_helper.to_array(stored[name]) for name in node.input[1:3])
            if scale.size != 1:
                return None
            least = np.iinfo(zero.dtype).min
            found.add((float(np.float32(scale.reshape(-1)[0])), int(zero.reshape(-1)[0]) - int(least)))
    for node in kept:
        node.input[:] = [instead.get(name, name) for name in node.input]
    kept += [
        onnx.helper.make_node("Identity", [instead[output.name]], [output.name])
        for output in graph.output
        if output.name in instead
    ]
    _replace(graph.node, kept)
    _replace(graph.value_info, [])
    return found


def _replace(field: Any, values: Sequence[Any]) -> None:
    kept = [type(each).FromString(each.SerializeToString()) for each in values]
    del field[:]
    field.extend(kept)
