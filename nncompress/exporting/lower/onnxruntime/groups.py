"""Weights of 4 bits by groups, said as ONNX (opset 21) says them, or as ONNX Runtime's own operators do.

| the graph                      | any runtime                                        | for `ort-cpu`        |
|--------------------------------|----------------------------------------------------|----------------------|
| product with dequantized codes | MatMul, DequantizeLinear of int4 [in, out] blocks  | MatMulNBits          |
| rows of a dequantized table    | Gather, DequantizeLinear of int4 [rows, in] blocks | GatherBlockQuantized |

ONNX Runtime makes MatMulNBits of the first by itself, if the blocks lie along the first dim; the second it
dequantizes as a whole in every call. The accuracy level of MatMulNBits is written down: 4, which rounds what
it multiplies to 8 bits, with a scale for each block. Level 1, in floats, took 3 times as long on AVX2; it is
for activations whose outliers share a block with the rest.
"""

from __future__ import annotations

from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxscript.version_converter

from nncompress.exporting.lower.onnxruntime.edit import array, insert, replace, store
from nncompress.ir.formats.groups import HIGH, LOW
from nncompress.targets import Rewrite

OPSET = 21  # the first in which DequantizeLinear has blocks, and 4 bits
LEVELS = {"nbits": 4, "nbits-floats": 1}  # of accuracy
MICROSOFT = "com.microsoft"
FLIP = -LOW  # codes and zero points as unsigned numbers


def lower_groups(model: ir.Model, rewrites: Collection[Rewrite]) -> int:
    """Rewrite the table above in place; how many of ONNX Runtime's own operators there are now."""
    graph = model.graph
    found = [each for each in graph if each.op_type == "DequantizeLinear" and _grid(each) is not None]
    if not found:
        return 0
    onnxscript.version_converter.convert_version(model, OPSET)
    count = 0
    level = next((level for name, level in LEVELS.items() if name in rewrites), None)
    for dequantize in found:
        weight = _Weight(graph, dequantize)
        for use in list(dequantize.outputs[0].uses()):
            for product in _products(use.node):
                count += weight.multiply(product, level)
            if use.node.op_type == "Gather" and use.idx == 0 and _axis(use.node) == 0:
                count += weight.look_up(use.node, own=level is not None)
        weight.finish()
    if count:
        model.opset_imports[MICROSOFT] = 1
    return count


def _grid(dequantize: ir.Node) -> np.ndarray | None:
    """The scales [out, groups] of a weight by groups."""
    scales = array(dequantize.inputs[1])
    return scales if scales is not None and scales.ndim == 2 else None


def _axis(gather: ir.Node) -> int:
    return gather.attributes["axis"].as_int() if "axis" in gather.attributes else 0


def _products(reader: ir.Node) -> list[ir.Node]:
    """The products with the transposed weight that `reader` is, or turns it for."""
    if reader.op_type == "Gemm":
        number = {name: reader.attributes[name].value for name in reader.attributes}
        plain = number.get("transB", 0) == 1 and not number.get("transA", 0)
        return [reader] * (plain and number.get("alpha", 1.0) == number.get("beta", 1.0) == 1.0)
    if reader.op_type != "Transpose":
        return []
    return [use.node for use in reader.outputs[0].uses() if use.node.op_type == "MatMul" and use.idx == 1]


class _Weight:
    """The codes, scales and zero points behind one DequantizeLinear, stored in each form once."""

    def __init__(self, graph: ir.Graph, dequantize: ir.Node) -> None:
        self._graph, self._node = graph, dequantize
        codes, scales = array(dequantize.inputs[0]), _grid(dequantize)
        assert codes is not None
        assert scales is not None
        self._codes, self._scales = codes, scales
        self._zeros = array(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
        self._size = codes.shape[1] // scales.shape[1]
        numbers = [codes, *([] if self._zeros is None else [self._zeros])]
        self._has_4_bits = all(n.dtype == np.int8 and n.min() >= LOW and n.max() <= HIGH for n in numbers)
        self._names = [str(value.name) for value in dequantize.inputs if value is not None]
        for name in self._names:  # free for what is stored in their place
            graph.initializers.pop(name, None)
        self._known: dict[str, list[ir.Value]] = {}

    def multiply(self, product: ir.Node, level: int | None) -> int:
        """Put the product with this weight in place of `product`, a MatMul or Gemm; 1 if by MatMulNBits.

        Args:
            level: of its accuracy; None: by MatMul.
        """
        data, result = product.inputs[0], product.outputs[0]
        own = level is not None and self._has_4_bits
        bias = product.inputs[2] if len(product.inputs) > 2 else None
        if own:
            packed, scales, *zeros = self._stored("packed")
            operands = [data, packed, scales, zeros[0] if zeros else None]
            given = {
                "K": self._codes.shape[1], "N": self._codes.shape[0], "bits": 4, "block_size": self._size,
                "accuracy_level": level,
            }  # fmt: skip
            node = ir.node("MatMulNBits", operands, given, domain=MICROSOFT, name=product.name)
        else:
            node = ir.node("MatMul", [data, self._floats(0)], name=product.name)
        value = insert(self._graph, product, node, result)
        if bias is not None:
            value = insert(self._graph, product, ir.node("Add", [value, bias]), result)
        replace(result, value)
        self._graph.remove(product, safe=True)
        return int(own)

    def look_up(self, gather: ir.Node, *, own: bool) -> int:
        """Read the rows of this table that `gather` asks for; 1 if by GatherBlockQuantized."""
        if not own or not self._has_4_bits:
            gather.replace_input_with(0, self._floats(1))
            return 0
        codes, scales, *zeros = self._stored("rows")
        operands = [codes, gather.inputs[1], scales, *zeros]
        given = {"gather_axis": 0, "quantize_axis": 1, "block_size": self._size, "bits": 4}
        node = ir.node("GatherBlockQuantized", operands, given, domain=MICROSOFT, name=gather.name)
        replace(gather.outputs[0], insert(self._graph, gather, node, gather.outputs[0]))
        self._graph.remove(gather, safe=True)
        return 1

    def finish(self) -> None:
        """What still reads the weight reads it in blocks; nobody reads the codes as they were."""
        if list(self._node.outputs[0].uses()):
            replace(self._node.outputs[0], self._floats(1))
        self._graph.remove(self._node, safe=True)

    def _floats(self, axis: int) -> ir.Value:
        """The dequantized weight: [out, in] with blocks along dim 1, [in, out] with blocks along dim 0."""
        name = f"floats {axis}"
        if name not in self._known:
            given = {"axis": axis, "block_size": self._size}
            node = ir.node("DequantizeLinear", self._stored(f"int4 {axis}"), given)
            value = insert(self._graph, self._node, node)
            shape = self._codes.shape if axis else self._codes.shape[::-1]
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
            self._known[name] = [value]
        return self._known[name][0]

    def _stored(self, form: str) -> list[ir.Value]:
        """Codes, scales and, where there are any, zero points, as the operators of this form take them."""
        if form not in self._known:
            parts = [self._codes, self._scales] + ([] if self._zeros is None else [self._zeros])
            if form in ("packed", "rows"):
                parts = [each if each is self._scales else _packed(each) for each in parts]
                if form == "packed":
                    parts[0] = parts[0].reshape(*self._scales.shape, -1)
                    parts = [parts[0], *(each.reshape(-1) for each in parts[1:])]
            else:
                parts = [each.T if form == "int4 0" else each for each in parts]
                if self._has_4_bits:
                    parts = [
                        each if each.dtype == np.float32 else each.astype(ml_dtypes.int4) for each in parts
                    ]
            self._known[form] = [
                store(self._graph, f"{name}{'_in_out' * (form == 'int4 0')}", np.ascontiguousarray(each))
                for name, each in zip(self._names, parts)
            ]
        return self._known[form]


def _packed(codes: np.ndarray) -> np.ndarray:
    """Two unsigned numbers of a row in a byte, the first in the lower half: uint8 [rows, columns / 2]."""
    unsigned = (codes.astype(np.int16) + FLIP).astype(np.uint8)
    if unsigned.shape[1] % 2:
        unsigned = np.pad(unsigned, ((0, 0), (0, 1)))
    return unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
