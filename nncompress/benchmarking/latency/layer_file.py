"""A few layers with random weights as an `.onnx` file, in floats or between bytes as in an int8 network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nncompress.devices import processor
from nncompress.ir.graph.ops import PRODUCTS
from nncompress.ir.layers.geometry import Geometry, geometry
from nncompress.ir.layers.weights import Layer
from nncompress.targets import Target

OPSET = 20
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
SCALE, ZERO = 0.05, 128  # of bytes between layers: what they hold makes no kernel slower


@dataclass(frozen=True)
class LayerShape:
    """One layer.

    Attributes:
        op: ONNX op: "Conv", "ConvTranspose", or "MatMul" (its weight [in, out]); "QuantizeLinear" and
            "DequantizeLinear", alone in their chain, convert floats to bytes and back and have no weight.
        weight: shape of the weight.
        attributes: of the node, as pairs.
        precision: what it computes in: "int8", "float32", "bfloat16"; "" for floats as the target computes
            them by itself.
    """

    op: str
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, tuple[int, ...] | int], ...] = ()
    precision: str = ""

    def __str__(self) -> str:
        """ "Conv 16x3x3x3 strides=1,1 pads=1,1,1,1 group=1 int8"."""
        texts = (
            f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in self.attributes
        )
        return " ".join([self.op, "x".join(map(str, self.weight)), *texts, self.precision]).rstrip()


Chain = tuple[LayerShape, ...]


def in_precision(chain: Chain, precision: str) -> Chain:
    """The same layers, all in this precision."""
    return tuple(replace(layer, precision=precision) for layer in chain)


def weights(chain: Chain) -> int:
    """How many it has."""
    return sum(prod(layer.weight) for layer in chain)


def shape_of(layer: Layer) -> LayerShape | str:
    """What there is to time of a layer of a model; or why there is nothing."""
    weight = tuple(layer.weight.value().shape)
    if layer.kind in PRODUCTS:
        if len(weight) != 2:
            return f"its weight has {len(weight)} dims"
        return LayerShape("MatMul", weight[::-1] if layer.kind == "linear" else weight)
    if not layer.kind.startswith("conv"):
        return f"{layer.kind} is no convolution or matrix product"
    place = geometry(layer)
    return "its padding is not the same on both sides" if place is None else convolution(place, weight)


def convolution(place: Geometry, weight: tuple[int, ...]) -> LayerShape:
    """A convolution with a weight of this shape."""
    attributes: list[tuple[str, tuple[int, ...] | int]] = [
        ("strides", place.stride),
        ("pads", place.padding * 2),
        ("dilations", place.dilation),
        ("group", place.groups),
    ]
    if place.transposed:
        attributes.append(("output_padding", place.output_padding))
    return LayerShape("ConvTranspose" if place.transposed else "Conv", weight, tuple(attributes))


def input_like(chain: Chain, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """What the file of `chain` takes."""
    if chain[0].precision == "int8":
        return generator.integers(0, 256, shape, dtype=np.uint8)
    return generator.standard_normal(shape, dtype=np.float32)


def layer_file(
    chain: Chain, shape: tuple[int, ...], target: Target, generator: np.random.Generator
) -> ModelProto:
    """The layers one behind the other, on an input of `shape`; weights in int8 as the target has them."""
    if chain[0].op in CONVERSIONS:
        return _conversion(chain[0].op, shape)
    int8 = chain[0].precision == "int8"
    unsigned = "unsigned-weights" in target.rewrites and processor().saturates
    nodes: list[NodeProto] = []
    stored = [*_qparams("bytes", SCALE, ZERO, np.uint8)] if int8 else []
    value = "x"
    for index, layer in enumerate(chain):
        name, made = f"w{index}", f"v{index + 1}"
        attributes: dict[str, Any] = dict(layer.attributes)
        if not int8:
            weight = generator.standard_normal(layer.weight, dtype=np.float32)
            stored.append(numpy_helper.from_array(weight, name))
            nodes.append(helper.make_node(layer.op, [value, name], [made], **attributes))
        else:
            codes = generator.integers(-127, 128, layer.weight) + (ZERO if unsigned else 0)
            kind = np.uint8 if unsigned else np.int8
            stored.append(numpy_helper.from_array(codes.astype(kind), name))
            stored += _qparams(name, SCALE / prod(layer.weight) ** 0.5, ZERO if unsigned else 0, kind)
            nodes += _between_bytes(layer.op, value, name, made, attributes)
        value = made
    element = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    return _file(nodes, stored, (element, shape), (element, value))


def _conversion(op: str, shape: tuple[int, ...]) -> ModelProto:
    node = helper.make_node(op, ["x", "bytes_scale", "bytes_zero"], ["y"])
    kinds = (TensorProto.FLOAT, TensorProto.UINT8)
    given, made = kinds if op == "QuantizeLinear" else kinds[::-1]
    return _file([node], [*_qparams("bytes", SCALE, ZERO, np.uint8)], (given, shape), (made, "y"))


def _file(
    nodes: list[NodeProto],
    stored: list[TensorProto],
    given: tuple[int, tuple[int, ...]],
    made: tuple[int, str],
) -> ModelProto:
    """From "x", `given` with its shape, to what `made` names."""
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", *given)],
        [helper.make_tensor_value_info(made[1], made[0], None)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _qparams(name: str, scale: float, zero: int, kind: Any) -> Iterator[TensorProto]:
    yield numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}_scale")
    yield numpy_helper.from_array(np.asarray(zero, kind), f"{name}_zero")


def _between_bytes(
    op: str, value: str, weight: str, made: str, attributes: dict[str, Any]
) -> list[NodeProto]:
    """Dequantize, op, quantize: what runtimes replace by an integer kernel, where they have one."""
    floats = [f"{made}_x", f"{made}_w", f"{made}_y"]
    grid = ["bytes_scale", "bytes_zero"]
    return [
        helper.make_node("DequantizeLinear", [value, *grid], [floats[0]]),
        helper.make_node("DequantizeLinear", [weight, f"{weight}_scale", f"{weight}_zero"], [floats[1]]),
        helper.make_node(op, floats[:2], [floats[2]], **attributes),
        helper.make_node("QuantizeLinear", [floats[2], *grid], [made]),
    ]
