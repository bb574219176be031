"""Weights that our own files have in a smaller form, which ops spell out, as the weights that they are.

| in the file                                                     | read as                            |
|-----------------------------------------------------------------|------------------------------------|
| Reshape(Gather(NAME_codebook, ... NAME_codes)), NAME_values ... | the initializer NAME               |
| Mul(Cast(NAME_int8), factors), cast by way of int32, too        | DequantizeLinear(NAME_int8, scales) |

Runtimes compute either once, when they open the file (`ir/formats/lookup.py`, `export/lower/onnxruntime/
weights.py`). Left as computed, no pass would see a layer there. What only looks alike stays as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from nncompress.ir.formats.lookup import TABLES
from nncompress.ir.formats.packed import PARTS, restore

Initializers = dict[str, onnx.TensorProto]


def spell_stored(proto: onnx.ModelProto, folder: str) -> None:
    """Rewrite the table above in place.

    Raises:
        Exception: of any kind, where a tensor does not fit its own shape or type.
    """
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    makers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            users[name].append(node)
        makers.update(dict.fromkeys(node.output, node))
    changed = [_unpack(graph, name, stored, users, folder) for name in list(stored)]
    products = [node for node in graph.node if node.op_type == "Mul"]
    changed += [_dequantize(graph, node, stored, makers, folder) for node in products]
    if any(changed):
        _remove_dead(graph)


def _unpack(
    graph: onnx.GraphProto,
    table: str,
    stored: Initializers,
    users: Mapping[str, list[onnx.NodeProto]],
    folder: str,
) -> bool:
    name, _, part = table.rpartition("_")
    if part not in TABLES or not name or name in stored:
        return False
    names = {each: f"{name}_{each}" for each in PARTS if f"{name}_{each}" in stored}
    last = _last(users, table)
    shape = None if last is None else stored.get(last.input[1])
    if last is None or shape is None or not names.keys() & {"bitmap", "codes"}:
        return False
    parts = {each: _tensor(stored[of], folder) for each, of in names.items()}
    sizes = tuple(numpy_helper.to_array(shape, folder).tolist())
    try:
        value = restore(parts, sizes).numpy()
    except ValueError:  # another's, called so by chance
        return False
    stored[name] = numpy_helper.from_array(value, name)
    graph.initializer.append(stored[name])
    _read_instead(graph, last.output[0], name)
    return True


def _last(users: Mapping[str, list[onnx.NodeProto]], table: str) -> onnx.NodeProto | None:
    """The Reshape that ends a lookup: table [-> Cast] -> Gather [-> Gather] -> Reshape."""
    name = table
    while True:
        found = users.get(name, [])
        if len(found) != 1 or found[0].op_type not in ("Cast", "Gather", "Reshape"):
            return None
        if found[0].op_type == "Reshape":
            return found[0]
        name = found[0].output[0]


def _dequantize(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    stored: Initializers,
    makers: Mapping[str, onnx.NodeProto],
    folder: str,
) -> bool:
    cast = makers.get(node.input[0])
    if cast is None or cast.op_type != "Cast" or node.input[1] not in stored:
        return False
    first = makers.get(cast.input[0])
    if first is not None and first.op_type == "Cast" and first.attribute[0].i == onnx.TensorProto.INT32:
        cast = first
    codes = stored.get(cast.input[0])
    if codes is None or codes.data_type != onnx.TensorProto.INT8:
        return False
    factors = numpy_helper.to_array(stored[node.input[1]], folder)
    axes = [axis for axis, size in enumerate(factors.shape) if size > 1]
    if factors.dtype != np.float32 or factors.ndim != len(codes.dims) or len(axes) > 1:
        return False
    axis = axes[0] if axes else 0
    name = f"{codes.name}_scales"
    if name in stored:
        return False
    scales = np.broadcast_to(factors.reshape(-1), codes.dims[axis])
    stored[name] = numpy_helper.from_array(np.ascontiguousarray(scales), name)
    graph.initializer.append(stored[name])
    read = helper.make_node("DequantizeLinear", [codes.name, name], list(node.output), axis=axis)
    node.CopyFrom(read)
    return True


def _tensor(stored: onnx.TensorProto, folder: str) -> torch.Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(stored, folder)))


def _read_instead(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new


def _remove_dead(graph: onnx.GraphProto) -> None:
    """Nodes and initializers that nothing reads any more."""
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            read.update(_read_inside(node))
            kept.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)


def _read_inside(node: onnx.NodeProto) -> set[str]:
    """What the graphs inside a node read, their own values among it."""
    inner = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    found = {value.name for graph in inner for value in graph.output}
    for graph in inner:
        for each in graph.node:
            found |= {*each.input, *_read_inside(each)}
    return found
