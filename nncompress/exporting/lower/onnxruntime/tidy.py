"""What the exporter leaves untidy: symbols for names, copies of shared weights, the author's file paths."""

from __future__ import annotations

import hashlib
from itertools import count

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nncompress.exporting.lower.onnxruntime.weights import WEIGHT_OPS
from nncompress.ir import Model

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits"}


def tidy(onnx_model: ir.Model, model: Model) -> None:
    """Tidy `onnx_model`, in place; it computes the same bits.

    - dynamic dims get the names that the inputs of `model` give them ("s77" -> "batch");
    - a weight that is stored twice, as it is or transposed, is stored once;
    - a layer's node is called after the layer, as its weight is;
    - what has the name of an input or output that another file gave gets another one;
    - metadata of nodes goes: stack traces with source paths of the machine that exported.
    """
    _name_dims(onnx_model, model)
    _share_initializers(onnx_model.graph)
    _share_transposed(onnx_model.graph)
    RemoveUnusedNodesPass()(onnx_model)
    _name_apart(onnx_model.graph)
    name_layers(onnx_model.graph)
    for node in onnx_model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in _values(onnx_model.graph):
        value.metadata_props.clear()


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]


def _name_apart(graph: ir.Graph) -> None:
    """The exporter calls a value `linear_1` though the user's file has an output of that name."""
    faces = {id(value): value.name for value in (*graph.inputs, *graph.outputs)}
    values = _values(graph)
    taken = {value.name for value in values}
    for value in values:
        name = value.name
        if name in faces.values() and id(value) not in faces:
            value.name = next(new for n in count(1) if (new := f"{name}.{n}") not in taken)
            taken.add(value.name)


def _name_dims(onnx_model: ir.Model, model: Model) -> None:
    names: dict[str, str] = {}
    for value, spec in zip(onnx_model.graph.inputs, model.inputs):
        for dim, wanted in zip(value.shape or (), spec.shape):
            if isinstance(dim, ir.SymbolicDim) and isinstance(wanted, str):
                names[str(dim.value)] = wanted
    for value in _values(onnx_model.graph):
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and str(dim.value) in names:
                assert value.shape is not None
                if value.shape.frozen:
                    value.shape = ir.Shape(value.shape.dims)
                value.shape[axis] = names[str(dim.value)]


def name_layers(graph: ir.Graph) -> None:
    """Call a layer's node after it: "node_conv2d_3" -> "layer1.0.conv1", told by the weight.

    Readers of one weight are numbered. Equal int8 weights of different layers are stored once too (those of
    one value per channel often are equal): their scales differ, and the bias tells the layer.
    """
    seen: dict[str, int] = {}
    scales: dict[str, ir.Value | None] = {}
    for node in graph:
        if node.op_type not in WEIGHTED or len(node.inputs) < 2:
            continue
        weight, scale = _stored(node.inputs[1])
        name, mark, _ = str(weight.name if weight is not None else "").rpartition(".weight")
        if not mark:
            continue
        if scales.setdefault(name, scale) is not scale and len(node.inputs) > 2:
            other, mark, _ = str(getattr(node.inputs[2], "name", "")).rpartition(".bias")
            name = other if mark else name
        seen[name] = seen.get(name, 0) + 1
        node.name = name if seen[name] == 1 else f"{name}#{seen[name]}"


def _stored(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """The initializer of a layer's weight, and its scale. Of one looked up, the codes: tables are shared."""
    source = None if value is None else value.producer()
    if value is None or source is None:
        return (value if value is not None and value.is_initializer() else None), None
    if source.op_type not in WEIGHT_OPS:
        return None, None
    inputs = (1, 0) if source.op_type == "Gather" else (0,)
    found = (_stored(source.inputs[position]) for position in inputs)
    named = ((weight, scale) for weight, scale in found if ".weight" in str(getattr(weight, "name", "")))
    weight, scale = next(named, (None, None))
    return weight, source.inputs[1] if source.op_type == "DequantizeLinear" else scale


def _share_initializers(graph: ir.Graph) -> None:
    """Equal initializers become one, but for the zero points of weights.

    Where weights share these, OpenVINO runs most of their layers in floats (2026.4).
    """
    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is None or value.is_graph_output() or _is_zero_of_weight(value):
            continue
        key = _key(value.const_value.numpy())
        if key in first:
            value.replace_all_uses_with(first[key])
            del graph.initializers[name]
        first.setdefault(key, value)


def _is_zero_of_weight(value: ir.Value) -> bool:
    return any(
        use.node.op_type == "DequantizeLinear" and use.idx == 2 and use.node.inputs[0].is_initializer()  # type: ignore[union-attr]
        for use in value.uses()
    )


def _share_transposed(graph: ir.Graph) -> None:
    """A matrix that is another one transposed (tied embedding and output layer) becomes its Transpose."""
    matrices = {
        name: value
        for name, value in graph.initializers.items()
        if value.const_value is not None and len(value.const_value.shape) == 2 and value.uses()
    }
    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in matrices.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if min(array.shape) == 1:
            continue
        flipped = first.get(_key(np.ascontiguousarray(array.T)))
        if flipped is None or value.is_graph_output():
            first[_key(array)] = value
            continue
        user = next(n for n in graph if any(i is value for i in n.inputs))
        node = ir.node("Transpose", [flipped], {"perm": [1, 0]})
        node.outputs[0].name = f"{name}_transposed"
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        graph.insert_before(user, node)
        value.replace_all_uses_with(node.outputs[0])
        del graph.initializers[name]


def _key(array: np.ndarray) -> tuple[object, ...]:
    return (array.dtype.str, str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest())
