"""Fused recurrent layers with int8 weights.

The exporter cuts the weight of every direction into gates and joins them in ONNX's order. Of a quantized one

    DequantizeLinear(codes) -> Slice, Concat, Unsqueeze -> LSTM

becomes `Mul(Cast(codes'), scales') -> LSTM`, which ONNX Runtime computes once, as it opens the file. So does
OpenVINO, whose recurrent layers take constants alone, but of bytes that it sees cast to floats it takes the
product for one that the kernel behind it will undo, and leaves it there: they are cast by way of int32.

ONNX Runtime has one int8 kernel, for LSTMs: where its target asks for it and the layer's input is rounded to
the range of each call, the layer becomes that (`DynamicQuantizeLSTM`), which rounds the state of every step,
too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import array, insert, producer, replace, store
from nncompress.ir.graph.places import float_name, layer_name

WEIGHTS = (1, 2)  # inputs W and R
KEPT = ("activation_alpha", "activation_beta", "activations", "direction", "hidden_size")  # of its attributes
DOMAIN, OPSET = "com.microsoft", 1
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def lower_recurrent(graph: ir.Graph, *, integers: bool) -> int:
    """Rewrite every such layer in place.

    Args:
        integers: by the int8 kernel, where there is one.
    Returns:
        how many layers run on that kernel now.
    """
    rounded = 0
    shelf = _Shelf(graph)
    seen: dict[str, int] = {}
    for node in list(graph):
        if node.op_type not in ("LSTM", "GRU", "RNN"):
            continue
        found = [_stacked(node.inputs[position]) for position in WEIGHTS]
        weights = [each for each in found if each is not None]
        complete = len(weights) == len(found)
        if weights:
            layer = layer_name(weights[0][0]) if complete else weights[0][0]
            seen[layer] = seen.get(layer, 0) + 1
            node.name = layer if seen[layer] == 1 else f"{layer}#{seen[layer]}"
        if not complete:  # as of a projected one, whose states are multiplied by a product of two
            continue
        fits = integers and node.op_type == "LSTM" and not _others(node)
        data = _dynamic_input(graph, node) if fits else None
        if data is not None:
            _round_state(shelf, node, data, weights)
            rounded += 1
        else:
            for position, weight in zip(WEIGHTS, weights):
                _multiply_out(shelf, node, position, *weight)
    return rounded


@dataclass
class _Shelf:
    """What was made of weights for one call of a layer, for its other calls."""

    graph: ir.Graph
    stored: dict[str, tuple[ir.Value, np.ndarray]] = field(default_factory=dict)
    joined: dict[tuple[str, ...], ir.Value] = field(default_factory=dict)

    def store(self, name: str, content: np.ndarray) -> ir.Value:
        value, known = self.stored.get(name, (None, None))
        if value is None or known is None or not np.array_equal(known, content):
            value = store(self.graph, name, content)
            self.stored[name] = value, content
        return value


Stacked = tuple[str, np.ndarray, np.ndarray]  # name, codes [directions, rows, columns], scales [..., rows, 1]


def _stacked(value: ir.Value | None) -> Stacked | None:
    name = _name(value)
    codes = _moved(value, lambda stored, scales: stored)
    every = _moved(value, lambda stored, scales: np.broadcast_to(scales, stored.shape))
    if name is None or codes is None or every is None or codes.ndim != 3:
        return None
    scales = every[..., :1]
    return (name, codes, scales) if np.array_equal(every, np.broadcast_to(scales, every.shape)) else None


def _name(value: ir.Value | None) -> str | None:
    """Of the first tensor that it is made of."""
    while value is not None and (node := value.producer()) is not None:
        value = node.inputs[0]
    return None if value is None or value.name is None else float_name(value.name)


def _moved(value: ir.Value | None, of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray | None:
    """What the moves in front of `value` make of something of the int8 tensors behind them."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        return _of_codes(node, of)
    if node.op_type == "Concat":
        parts = [_moved(each, of) for each in node.inputs]
        known = [each for each in parts if each is not None]
        axis = node.attributes["axis"].as_int()
        return np.concatenate(known, axis) if len(known) == len(parts) else None
    moved = _moved(node.inputs[0], of) if node.inputs else None
    sizes = [found for each in node.inputs[1:] if (found := array(each)) is not None]
    if moved is None or len(sizes) < len(node.inputs) - 1:
        return None
    if node.op_type == "Unsqueeze":
        return np.expand_dims(moved, tuple(int(axis) for axis in sizes[0]))
    if node.op_type == "Slice" and len(sizes) == 3:
        cut = [slice(None)] * moved.ndim
        for start, end, axis in zip(*sizes):
            cut[int(axis)] = slice(int(start), int(end))
        return moved[tuple(cut)]
    return None


def _of_codes(node: ir.Node, of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray | None:
    stored, scale = array(node.inputs[0]), array(node.inputs[1])
    zero = array(node.inputs[2]) if len(node.inputs) > 2 else None
    if stored is None or scale is None or stored.dtype != np.int8 or scale.ndim > 1:
        return None
    if zero is not None and zero.any():
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    shape = [-1 if scale.ndim and dim == axis % stored.ndim else 1 for dim in range(stored.ndim)]
    return of(stored, scale.reshape(shape))


def _dynamic_input(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """The sequence before it was rounded to its own range; the batch first, it is turned anew."""
    turn = producer(node.inputs[0], "Transpose")
    dequantize = producer(node.inputs[0] if turn is None else turn.inputs[0], "DequantizeLinear")
    rounding = None if dequantize is None else producer(dequantize.inputs[0], "DynamicQuantizeLinear")
    if rounding is None or turn is None:
        return None if rounding is None else rounding.inputs[0]
    again = ir.node("Transpose", [rounding.inputs[0]], {"perm": turn.attributes["perm"].as_ints()})
    return insert(graph, node, again, node.inputs[0])


def _others(node: ir.Node) -> list[str]:
    """What is said of the layer that its int8 kernel does not take."""
    return [
        name
        for name, given in node.attributes.items()
        if name not in KEPT and not (name in ("layout", "input_forget") and given.as_int() == 0)
    ]


def _multiply_out(
    shelf: _Shelf, node: ir.Node, position: int, name: str, codes: np.ndarray, scales: np.ndarray
) -> None:
    graph, parts = shelf.graph, []
    for side, (stored, factors) in enumerate(zip(codes, scales)):  # a scale per row: of one direction each
        named = f"{name}_gates" + (f"_{side}" if len(codes) > 1 else "")
        value = shelf.store(f"{named}_int8", np.ascontiguousarray(stored[None]))
        parts.append((value, shelf.store(f"{named}_scales", np.ascontiguousarray(factors[None]))))
    key = tuple(str(value.name) for part in parts for value in part)
    joined = shelf.joined.get(key)
    if joined is None:
        made = []
        for value, factor in parts:
            cast = value
            for kind in (ir.DataType.INT32, ir.DataType.FLOAT):
                cast = insert(graph, node, ir.node("Cast", [cast], {"to": kind}))
                cast.type, cast.shape = ir.TensorType(kind), value.shape
            made.append(insert(graph, node, ir.node("Mul", [cast, factor]), cast))
        joined = made[0] if len(made) == 1 else insert(graph, node, ir.node("Concat", made, {"axis": 0}))
        joined.type, joined.shape = FLOAT, ir.Shape(codes.shape)
        shelf.joined[key] = joined
    node.replace_input_with(position, joined)


def _round_state(shelf: _Shelf, node: ir.Node, data: ir.Value, weights: list[Stacked]) -> None:
    graph = shelf.graph
    given: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    given[0] = data
    scaled: list[ir.Value | None] = []
    for position, (name, codes, scales) in zip(WEIGHTS, weights):
        turned = np.ascontiguousarray(codes.transpose(0, 2, 1))  # as [directions, in, gates · hidden]
        given[position] = shelf.store(f"{name}_gates_int8", turned)
        rows = np.ascontiguousarray(scales[..., 0])
        scaled += [shelf.store(f"{name}_gates_scales", rows)]
        scaled += [shelf.store(f"{name}_gates_zero", np.zeros(rows.shape, np.int8))]
    kept = [given for name, given in node.attributes.items() if name in KEPT]
    outputs = len(node.outputs)
    made = ir.Node(
        DOMAIN, "DynamicQuantizeLSTM", [*given, *scaled], kept, num_outputs=outputs, name=node.name
    )
    graph.insert_before(node, made)
    for old, new in zip(node.outputs, made.outputs):
        new.name, new.type, new.shape = f"{old.name}_rounded", old.type, old.shape
        replace(old, new)
    graph.remove(node, safe=True)
    graph.opset_imports.setdefault(DOMAIN, OPSET)
