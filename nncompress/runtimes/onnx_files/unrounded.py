"""Quantized files without their rounding: what tells whether one that rounding takes apart is right.

Where outputs hang on the last bits of what is rounded, a right file is as far from the graph as the graph is
from itself, and their distance tells little. But with the rounding of activations taken out of both, the file
has to agree as a file in float32 does, which shows a wrong weight, scale of a weight, or op; and the steps
that it rounded by have to be the graph's.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from torch import fx

from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import argument

MOST_BYTES = 2**31 - 2**20  # of a file in one message


@dataclass(frozen=True, order=True)
class _Step:
    """Of quantization; the zero point is counted from the least integer of so many bits."""

    scale: float
    zero: int
    bits: int
    least: int = field(compare=False)


_Place = tuple[Hashable, _Step]  # what is rounded, and by which step: each once, in the order of the graph


class _NotTold(Exception):
    """Steps that are no plain numbers, or whose place is not told."""


def write_unrounded(model: Model, path: Path, to: Path) -> str:
    """Write the file at `path` without its rounding of activations.

    Returns:
        "", or why not: it has other steps than the graph of `model`, or they cannot be told.
    """
    too_large = "it cannot be compared without rounding: it is larger than 2 GiB"
    if path.stat().st_size > MOST_BYTES:
        return too_large
    file = onnx.load(path)
    try:
        steps, found = _steps_of(model), _take_out(file.graph)
    except _NotTold as error:
        return f"it cannot be compared without rounding: {error}"
    if found != steps:
        where = ", or in another order" if sorted(found) == sorted(steps) else ""
        return f"it rounds activations by other steps than the graph{where}"
    try:
        onnx.save(file, to)
    except ValueError:  # with its external data
        return too_large
    return ""


def _steps_of(model: Model) -> list[_Step]:
    """
    Raises:
        _NotTold: steps are computed, or a value is given back by another step than it was rounded by.
    """
    instead: dict[fx.Node, fx.Node] = {}
    codes: dict[fx.Node, set[_Step]] = {}
    whole: dict[fx.Node, set[_Step]] = {}  # multiples of a step, which it does not round again
    found: dict[_Place, None] = {}
    for node in model.graph.nodes:
        read = set[_Step]().union(*(codes.get(each, ()) for each in node.all_input_nodes))
        rounds = op_name(node) == "quantize_per_tensor"
        ends = bool(read) and op_name(node) == "dequantize_per_tensor"
        if not (rounds or ends):
            if read:
                codes[node] = read
            if node.all_input_nodes and _moves(node):
                whole[node] = whole.get(node.all_input_nodes[0], set())
            continue
        source, scale, zero, least, _, dtype = node.args[:6]
        if not isinstance(scale, float) or not isinstance(zero, int):
            raise _NotTold("the graph has steps that are computed")
        step = _Step(float(np.float32(scale)), zero - least, 8 * dtype.itemsize, least)
        instead[node] = instead.get(source, source)
        if ends or step not in whole.get(source, ()):
            _enter(step, node.name, instead[node], read if ends else None, found)
        (codes if rounds else whole)[node] = {step}
    return [step for _, step in found]


def _moves(node: fx.Node) -> bool:
    """What a target may do to codes in the place of values."""
    if op_name(node) not in ("pad", "constant_pad_nd"):
        return op_name(node) == "slice"
    value = argument(node, len(node.target._schema.arguments) - 1)  # type: ignore[union-attr]
    return not value and (op_name(node) != "pad" or argument(node, 2) == "constant")


def _enter(
    step: _Step, name: str, source: Hashable, read: set[_Step] | None, found: dict[_Place, None]
) -> None:
    """A value is rounded by that step; or given back, after it was rounded by those that are `read`.

    Raises:
        _NotTold: these are others.
    """
    if read is None:
        found[source, step] = None
    elif read != {step}:
        raise _NotTold(f"{name} gives activations back by another step than they were rounded by")


def _take_out(graph: onnx.GraphProto) -> list[_Step]:
    """Join what pairs of QuantizeLinear and DequantizeLinear stand between; their steps.

    Raises:
        _NotTold: it holds subgraphs, or steps that are computed or no pair's.
    """
    stored = {each.name: each for each in graph.initializer}
    instead: dict[str, str] = {}
    codes: dict[str, set[_Step]] = {}  # of activations; those of weights may be unpacked and moved, too
    whole: dict[str, set[_Step]] = {}
    found: dict[_Place, None] = {}
    kept = []
    for node in graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise _NotTold("it has branches")
        read = set[_Step]().union(*(codes.get(name, ()) for name in node.input))
        rounds = node.op_type == "QuantizeLinear"
        ends = bool(read) and node.op_type == "DequantizeLinear"
        if not (rounds or ends):
            if read:
                codes.update(dict.fromkeys(node.output, read))
            if node.op_type == "Pad" and read:
                _pad_values(graph, node, stored, read)
            elif node.op_type in ("Slice", "Pad"):
                whole[node.output[0]] = whole.get(node.input[0], set())
            kept.append(node)
            continue
        step = _step_of(node, stored, read)
        instead[node.output[0]] = instead.get(node.input[0], node.input[0])
        if ends or step not in whole.get(node.input[0], ()):
            _enter(step, node.name or node.output[0], instead[node.output[0]], read if ends else None, found)
        (codes if rounds else whole)[node.output[0]] = {step}
    for node in kept:
        node.input[:] = [instead.get(name, name) for name in node.input]
    kept += [
        onnx.helper.make_node("Identity", [instead[output.name]], [output.name])
        for output in graph.output
        if output.name in instead
    ]
    _replace(graph.node, kept)
    _replace(graph.value_info, [])
    return [step for _, step in found]


def _pad_values(
    graph: onnx.GraphProto, pad: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto], read: set[_Step]
) -> None:
    """What codes are padded with becomes the number that it stands for.

    Raises:
        _NotTold: it is computed, or stands for several.
    """
    given = pad.input[2] if len(pad.input) > 2 else ""
    if (given and given not in stored) or len(read) != 1:
        raise _NotTold(f"{pad.name or pad.output[0]} pads codes with what is computed")
    (step,) = read
    code = int(numpy_helper.to_array(stored[given]).reshape(-1)[0]) if given else 0
    value = np.float32(step.scale) * (code - step.zero - step.least)
    name = f"{pad.output[0]}_value"
    graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    pad.input[:] = [*pad.input[:2], name, *pad.input[3:]]


def _step_of(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto], read: set[_Step]) -> _Step:
    """Of one that rounds; or that gives back what was rounded by those that are `read`. A zero point that it
    does not state is 0.

    Raises:
        _NotTold: it is computed, of several scales, or of codes that are no integers.
    """
    names = [name for name in node.input[1:3] if name]
    if not set(names) <= stored.keys():
        raise _NotTold("it has steps that are computed")
    scale = numpy_helper.to_array(stored[names[0]])
    if scale.size != 1:
        raise _NotTold("it rounds activations by a scale per channel")
    value = float(np.float32(scale.reshape(-1)[0]))
    if len(names) == 1 and read:
        least, bits = next((each.least, each.bits) for each in read)
        return _Step(value, -least, bits, least)
    stated = next((a.i for a in node.attribute if a.name == "output_dtype"), 0) or onnx.TensorProto.UINT8
    kind = stored[names[1]].data_type if len(names) > 1 else stated
    name = onnx.TensorProto.DataType.Name(kind)
    integer = re.fullmatch(r"(U?)INT(\d+)", name)
    if integer is None:
        raise _NotTold(f"it rounds activations to {name}")
    bits = int(integer[2])
    least = 0 if integer[1] else -(2 ** (bits - 1))
    zero = int(numpy_helper.to_array(stored[names[1]]).reshape(-1)[0]) if len(names) > 1 else 0
    return _Step(value, zero - least, bits, least)


def _replace(field: Any, values: Sequence[Any]) -> None:
    kept = [type(each).FromString(each.SerializeToString()) for each in values]
    del field[:]
    field.extend(kept)
