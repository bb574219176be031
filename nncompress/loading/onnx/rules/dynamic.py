"""Products of activations that are rounded to the range of each batch, as the IR has them: in floats.

| in the file                                                  | read as                              |
|--------------------------------------------------------------|--------------------------------------|
| DynamicQuantizeLinear                                        | choose_qparams, quantize             |
| MatMulInteger, Cast, Mul by the scales of both (as nncompress | DequantizeLinear of both, MatMul     |
| and ONNX Runtime's `quantize_dynamic` write it)              |                                      |
"""

from __future__ import annotations

import onnx
import torch
import torch.ao.quantization.fx._decomposed
from onnx import TensorProto, helper

from nncompress.ir.formats.qdq import LEAST_SCALE, LEVELS
from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import Value

ops = torch.ops.quantized_decomposed


def spell_dynamic(proto: onnx.ModelProto) -> None:
    """Rewrite the second row of the table above in place."""
    graph = proto.graph
    if any(node.op_type == "MatMulInteger" for node in graph.node):
        _Spelling(graph).run()


class _Spelling:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._made_by = {name: node for node in graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def run(self) -> None:
        replaced: dict[str, list[onnx.NodeProto]] = {}  # by the output of the last node of the three
        gone: set[str] = set()
        for node in self._graph.node:
            if node.op_type == "MatMulInteger" and (found := self._floats(node)) is not None:
                last, nodes = found
                replaced[last] = nodes
                gone |= {node.output[0], self._readers[node.output[0]][0].output[0]}
        nodes = [
            each
            for node in self._graph.node
            if not gone & set(node.output)
            for each in replaced.get(node.output[0] if node.output else "", [node])
        ]
        read = {name for node in nodes for name in node.input} | {out.name for out in self._graph.output}
        del self._graph.node[:]
        self._graph.node.extend(n for n in nodes if n.op_type != "Mul" or read & set(n.output))

    def _floats(self, product: onnx.NodeProto) -> tuple[str, list[onnx.NodeProto]] | None:
        """The name of the scaled product, and what computes it in floats; None where it has another form."""
        rounded, weight, zero, weight_zero = [*product.input, "", ""][:4]
        source, turned = self._made_by.get(rounded), self._made_by.get(weight)
        if source is None or source.op_type != "DynamicQuantizeLinear":
            return None
        shared = turned is not None and turned.op_type == "Transpose"  # with a table, say
        stored = self._stored.get(turned.input[0] if turned is not None and shared else weight)
        cast = self._only_reader(product.output[0], "Cast")
        if zero != source.output[2] or stored is None or len(stored.dims) != 2 or cast is None:
            return None
        last = self._only_reader(cast.output[0], "Mul")
        if [a.i for a in cast.attribute] != [TensorProto.FLOAT] or last is None:
            return None
        (factor,) = [name for name in last.input if name != cast.output[0]] or [""]
        scales = self._scales(factor, source.output[1])
        if scales is None or not self._fits(weight_zero, scales):
            return None
        name = last.output[0]
        pairs = ((rounded, source.output[1], zero), (weight, scales, weight_zero))
        floats = [f"{name}_float_{side}" for side in range(2)]
        return name, [
            *(
                helper.make_node("DequantizeLinear", list(filter(None, pair)), [result], axis=1)
                for pair, result in zip(pairs, floats)
            ),
            helper.make_node("MatMul", floats, [name], product.name),
        ]

    def _only_reader(self, name: str, op_type: str) -> onnx.NodeProto | None:
        readers = self._readers.get(name, [])
        is_output = any(output.name == name for output in self._graph.output)
        return readers[0] if len(readers) == 1 and readers[0].op_type == op_type and not is_output else None

    def _scales(self, factor: str, scale: str) -> str | None:
        """The weight's stored scales, where `factor` is their product with `scale`."""
        made = self._made_by.get(factor)
        if made is None or made.op_type != "Mul" or scale not in made.input:
            return None
        (other,) = [name for name in made.input if name != scale] or [""]
        tensor = self._stored.get(other)
        return other if tensor is not None and len(tensor.dims) <= 1 else None

    def _fits(self, zero: str, scales: str) -> bool:
        tensor = self._stored.get(zero)
        return not zero or (tensor is not None and list(tensor.dims) == list(self._stored[scales].dims))


@rule("DynamicQuantizeLinear")
def dynamic_quantize(call: Call) -> list[Value]:
    x = call.tensor(0)
    scale, zero = ops.choose_qparams.tensor(x, 0, LEVELS, LEAST_SCALE, torch.uint8)
    return [ops.quantize_per_tensor.tensor(x, scale, zero, 0, LEVELS, torch.uint8), scale, zero]


@rule("MatMulInteger")
def integer_product(call: Call) -> Value:
    raise call.refusal("integers that are not multiplied by their scales at once")


@rule("com.microsoft.DynamicQuantizeLSTM")
def dynamic_lstm(call: Call) -> Value:
    raise call.refusal("weights that are not stored")  # those that are became an LSTM when it was opened
