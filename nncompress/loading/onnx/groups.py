"""Weights of 4 bits by groups, in every form that files have them, as one: int8 codes [out, in], and linear.

| in the file                                                  | read as                          |
|--------------------------------------------------------------|----------------------------------|
| MatMul, DequantizeLinear of blocks along dim 0               | linear with dequantized codes    |
| MatMulNBits                                                  | the same                         |
| DequantizeLinear of blocks along dim 1                       | dequantized codes                |
| GatherBlockQuantized                                         | Gather of dequantized codes      |

Codes and zero points that are stored unsigned become signed, which changes no weight. What has another form
(8 bits, groups that are not whole, an order of its own) is refused by its rule.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import torch
import torch.ao.quantization.fx._decomposed
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule

ops = torch.ops.quantized_decomposed

MICROSOFT, OWN = "com.microsoft", "nncompress"
FLIP = 8
Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # codes, scales, zero points as the IR has them


def spell_groups(proto: onnx.ModelProto, folder: str) -> None:
    """Rewrite the table above in place.

    Raises:
        Exception: of any kind, where a tensor does not fit its own shape or type.
    """
    graph = proto.graph
    if not any(_is_grouped(node) for node in graph.node):
        return
    _Spelling(graph, folder).run()
    if not any(each.domain == OWN for each in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(OWN, 1))


def _is_grouped(node: onnx.NodeProto) -> bool:
    blocks = node.op_type == "DequantizeLinear" and _attribute(node, "block_size", 0) > 0
    return blocks or node.op_type in ("MatMulNBits", "GatherBlockQuantized")


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


class _Spelling:
    def __init__(self, graph: onnx.GraphProto, folder: str) -> None:
        self._graph, self._folder = graph, folder
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._made_by = {name: node for node in graph.node for name in node.output}
        self._known: dict[tuple[bytes, ...], list[str]] = {}
        self._wanted: dict[str, str] = {}  # the name of a new tensor -> the name that it would have

    def run(self) -> None:
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            nodes += self._spelt(node) or [node]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        self._drop_unread()
        self._rename()

    def _spelt(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """What stands for a node; None where that is the node itself."""
        if node.op_type == "MatMulNBits" and node.domain == MICROSOFT:
            packed = self._packed(node)
            bias = node.input[5] if len(node.input) > 5 else ""
            return None if packed is None else [self._linear(node, packed, bias)]
        if node.op_type == "GatherBlockQuantized" and node.domain == MICROSOFT:
            table = self._table(node)
            if table is None:
                return None
            name = f"{node.output[0]}_table"
            gather = helper.make_node("Gather", [name, node.input[1]], list(node.output), node.name, axis=0)
            return [self._floats(node, table, name), gather]
        if node.op_type == "MatMul":
            source = self._made_by.get(node.input[1])
            parts = None if source is None else self._blocks(source, 0)
            return None if parts is None else [self._linear(node, parts, "")]
        if node.op_type == "DequantizeLinear":
            turned = self._blocks(node, 0)
            if turned is not None:
                name = f"{node.output[0]}_turned"
                turn = helper.make_node("Transpose", [name], list(node.output), perm=[1, 0])
                return [self._floats(node, turned, name), turn]
            parts = self._blocks(node, 1)
            return None if parts is None else [self._floats(node, parts, node.output[0])]
        return None

    # -- parts of each form, None where it has another -----------------------------------------------------

    def _blocks(self, node: onnx.NodeProto, axis: int) -> Parts | None:
        size = _attribute(node, "block_size", 0)
        if node.op_type != "DequantizeLinear" or size <= 0:
            return None
        arrays = [self._array(name) for name in node.input]
        if any(each is None or each.ndim != 2 for each in arrays) or _attribute(node, "axis", 1) % 2 != axis:
            return None
        codes, scales, *zeros = (each.T if axis == 0 else each for each in arrays if each is not None)
        if codes.dtype.name not in ("int4", "uint4"):
            return None
        if codes.dtype.name == "uint4" and not zeros:
            zeros = [np.zeros(scales.shape, np.uint8)]
        flip = 0 if codes.dtype.name == "int4" else FLIP
        return _parts(codes, scales, zeros[0] if zeros else None, size, flip)

    def _packed(self, node: onnx.NodeProto) -> Parts | None:
        inputs, outputs = _attribute(node, "K", 0), _attribute(node, "N", 0)
        size = _attribute(node, "block_size", 0)
        codes, scales = self._array(node.input[1]), self._array(node.input[2])
        order = len(node.input) > 4 and node.input[4]
        if order or _attribute(node, "bits", 4) != 4 or size <= 0 or inputs % size:
            return None
        if codes is None or scales is None or codes.size * 2 != inputs * outputs:
            return None
        zeros = self._array(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        if zeros is not None:
            if zeros.dtype != np.uint8:
                return None
            zeros = _unpacked(zeros.reshape(outputs, -1))[:, : inputs // size]
        elif len(node.input) > 3 and node.input[3]:
            return None
        unsigned = _unpacked(codes.reshape(outputs, -1))
        return _parts(unsigned, scales.reshape(outputs, -1), zeros, size, FLIP)

    def _table(self, node: onnx.NodeProto) -> Parts | None:
        size, given = _attribute(node, "block_size", 128), list(node.input)
        codes, scales = self._array(given[0]), self._array(given[2])
        zeros = self._array(given[3]) if len(given) > 3 and given[3] else None
        if codes is None or scales is None or codes.ndim != 2 or scales.ndim != 2:
            return None
        if _attribute(node, "gather_axis", 0) % 2 or _attribute(node, "quantize_axis", 1) % 2 != 1:
            return None
        if codes.dtype == np.uint8:
            if _attribute(node, "bits", 4) != 4:
                return None
            codes = _unpacked(codes)
            zeros = None if zeros is None else _unpacked(zeros)[:, : scales.shape[1]]
            return _parts(codes, scales, zeros, size, FLIP)
        if codes.dtype.name not in ("int4", "uint4"):
            return None
        return _parts(codes, scales, zeros, size, 0 if codes.dtype.name == "int4" else FLIP)

    def _array(self, name: str) -> np.ndarray | None:
        """What is stored under this name, or the transpose of what is."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name], self._folder)
        node = self._made_by.get(name)
        if node is None or node.op_type != "Transpose" or node.input[0] not in self._stored:
            return None
        found = self._array(node.input[0])
        return found.T if found is not None and found.ndim == 2 else None

    # -- what stands for them ------------------------------------------------------------------------------

    def _floats(self, node: onnx.NodeProto, parts: Parts, output: str) -> onnx.NodeProto:
        name = node.input[0] if node.op_type != "MatMul" else node.input[1]
        return helper.make_node("DequantizeGroups", self._keep(name, parts), [output], domain=OWN)

    def _linear(self, node: onnx.NodeProto, parts: Parts, bias: str) -> onnx.NodeProto:
        source = self._made_by.get(node.input[1])
        stored = node.input[1] if source is None else source.input[0]
        codes, scales, zeros = self._keep(stored, parts)
        inputs = [node.input[0], codes, scales, zeros, bias]
        return helper.make_node("LinearByGroups", inputs, list(node.output), node.name, domain=OWN)

    def _keep(self, name: str, parts: Parts) -> list[str]:
        """Names of new initializers, the same of equal ones: a table may be a layer's weight too."""
        name = name.removesuffix("_transposed").removesuffix("_in_out")
        base = name.removesuffix("_int4")
        key = tuple(each.tobytes() for each in parts if each is not None)
        if key not in self._known:
            names = []
            for wanted, each in zip((name, f"{base}_scale", f"{base}_zero"), parts):
                if each is None:
                    names.append("")
                    continue
                free = wanted
                while free in self._stored or free in self._made_by:
                    free += "_"
                tensor = numpy_helper.from_array(np.ascontiguousarray(each), free)
                self._stored[free], self._wanted[free] = tensor, wanted
                self._graph.initializer.append(tensor)
                names.append(free)
            self._known[key] = names
        return self._known[key]

    def _drop_unread(self) -> None:
        """Transposes of what was read, and what was read, where nothing else reads them."""
        wanted = {output.name for output in self._graph.output}
        for node in reversed(self._graph.node):
            if node.op_type == "Transpose" and node.output[0] not in wanted:
                node.op_type = ""
                continue
            wanted.update(node.input)
            wanted.update(_inside(node))
        kept = [node for node in self._graph.node if node.op_type]
        tensors = [tensor for tensor in self._graph.initializer if tensor.name in wanted]
        for field, content in ((self._graph.node, kept), (self._graph.initializer, tensors)):
            del field[:]
            field.extend(content)

    def _rename(self) -> None:
        """New tensors take over the names of those that are gone."""
        tensors = {tensor.name: tensor for tensor in self._graph.initializer}
        taken = tensors.keys() | {name for node in self._graph.node for name in node.output}
        new = {free: wanted for free, wanted in self._wanted.items() if wanted not in taken}
        for free, wanted in new.items():
            tensors[free].name = wanted
        for node in self._graph.node:
            if node.domain == OWN:
                node.input[:] = [new.get(name, name) for name in node.input]


def _inside(node: onnx.NodeProto) -> Iterable[str]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _inside(inner)
            yield from (output.name for output in graph.output)


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """[rows, bytes] -> uint8 [rows, 2 · bytes], the lower half of each byte first."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)


def _parts(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, size: int, flip: int
) -> Parts | None:
    fits = scales.dtype == np.float32 and scales.shape == (len(codes), codes.shape[1] // size)
    if not fits or codes.shape[1] % size or (zeros is not None and zeros.shape != scales.shape):
        return None
    signed = (codes.astype(np.int8) - np.int8(flip)).astype(np.int8)
    points = None if zeros is None else (zeros.astype(np.int8) - np.int8(flip)).astype(np.int8)
    return signed, scales, points


def _dequantized(call: Call, first: int) -> Tensor:
    codes, scales, zeros = call.tensor(first), call.tensor(first + 1), call.optional(first + 2)
    if codes.dim() != 2 or scales.dim() != 2 or codes.shape[1] % scales.shape[1]:
        raise call.refusal("with parts that do not fit")
    size = codes.shape[1] // scales.shape[1]
    return ops.dequantize_per_channel_group(codes, scales, zeros, -8, 7, torch.int8, size, torch.float32)


@rule("nncompress.DequantizeGroups")
def dequantize_groups(call: Call) -> Tensor:
    return _dequantized(call, 0)


@rule("nncompress.LinearByGroups")
def linear_by_groups(call: Call) -> Tensor:
    return F.linear(call.tensor(0), _dequantized(call, 1), call.optional(4))


@rule("com.microsoft.MatMulNBits", "com.microsoft.GatherBlockQuantized")
def other_forms(call: Call) -> Tensor:
    raise call.refusal("not of 4 bits in whole groups of neighbouring inputs, with float32 scales")
