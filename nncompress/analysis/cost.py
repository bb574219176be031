"""What a model costs: parameters, multiply-accumulates and stored bytes of every layer.

A MAC is one multiplication with its addition, counted for one sample (batch 1), in contractions only:
convolutions, linear layers, matrix products, attention, recurrent cells. Pointwise work is not counted, as in
the papers. A parameter that several layers share is counted where it is first read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from nncompress.ir.formats.packed import bits_for
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import RECURRENT, op_name
from nncompress.ir.graph.places import layer_name
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import argument, roles_of, weight_at


@dataclass(frozen=True)
class LayerCost:
    """One row: a node that stores parameters or multiplies.

    Attributes:
        name: dotted module name, or the node's own where it stores nothing.
        kind: the ATen op, "conv2d"; "depthwise conv2d" where each channel has its own filters.
        shape: the weight's shape, () without one.
        output: the shape of the layer's output at batch 1, or at the model's fixed batch.
        parameters: stored values counted here, biases and buffers that an inference reads included.
        nonzero: how many of those are not zero.
        macs: multiply-accumulates at batch 1.
        bytes: stored bytes of the parameters counted here; files pack weights of 4 bits and fewer.
        bits: of each value of the weight, in a file; 0 without one.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int
    nonzero: int
    macs: int
    bytes: int
    bits: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Cost:
    """All rows, in graph order."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.layers)

    @property
    def nonzero(self) -> int:
        return sum(row.nonzero for row in self.layers)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.layers)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.layers)

    def totals(self) -> dict[str, int]:
        return {
            "parameters": self.parameters,
            "nonzero": self.nonzero,
            "macs": self.macs,
            "bytes": self.bytes,
        }


def cost(model: Model) -> Cost:
    """Cost of every layer of `model` for one sample, also where its batch is fixed at more."""
    shapes = Shapes(model)
    samples = model.fixed_batch or 1
    bits, zeros = _stored_bits(model), _zero_points(model)
    rows = []
    for node, stored, fresh, scales in counted_tensors(model):
        macs = node_macs(node, shapes) // samples
        if not stored and not macs:
            continue
        values = [(name, tensor) for name, tensor in fresh if name not in scales]
        rows.append(
            LayerCost(
                name=layer_name(stored[0]) if stored else node.name,
                kind=_kind(node, shapes),
                shape=tuple(model.tensor(stored[0]).shape) if stored else (),
                output=shapes.of(node),
                parameters=sum(t.numel() for _, t in values),
                nonzero=sum(
                    int(torch.count_nonzero(t - zeros[name] if name in zeros else t)) for name, t in values
                ),
                macs=macs,
                bytes=sum(_bytes(t, bits.get(name, 8)) for name, t in fresh),
                bits=model.tensor(stored[0]).element_size() * bits.get(stored[0], 8) if stored else 0,
            )
        )
    return Cost(tuple(rows))


def counted_tensors(
    model: Model,
) -> Iterator[tuple[fx.Node, list[str], list[tuple[str, torch.Tensor]], set[str]]]:
    """Every node that may cost something: the tensors that it reads, those of them that no node before it
    has read (they are counted here), and which of the names are scales and zero points of int8 tensors."""
    counted: set[int] = set()
    for node in model.graph.nodes:
        if node.op != "call_function" or op_name(node).startswith(("dequantize", "quantize")):
            continue
        stored, scales = _stored_tensors(model, node)
        fresh = [(name, model.tensor(name)) for name in stored if id(model.tensor(name)) not in counted]
        counted.update(id(tensor) for _, tensor in fresh)
        yield node, stored, fresh, scales


def _stored_bits(model: Model) -> dict[str, int]:
    """Of each int8 tensor, the bits that its range of values needs in a file: 8, 4 or 2."""
    found = {}
    for node in model.graph.nodes:
        name = op_name(node)
        if name.startswith("dequantize_per_channel") and node.args[0].op == "get_attr":
            start = 4 if name == "dequantize_per_channel" else 3
            bits = bits_for(int(node.args[start + 1]) - int(node.args[start]) + 1)
            found[str(node.args[0].target)] = bits
            if name == "dequantize_per_channel_group" and node.args[2] is not None:
                found[str(node.args[2].target)] = bits  # its zero points
    return found


def _zero_points(model: Model) -> dict[str, torch.Tensor]:
    """Of each int8 tensor with a zero point per group, the code that means zero, of the tensor's shape."""
    found = {}
    for node in model.graph.nodes:
        weight = weight_at(model, node) if op_name(node) == "dequantize_per_channel_group" else None
        if weight is not None and weight.group_size is not None and node.args[2] is not None:
            points = model.tensor(str(node.args[2].target))
            found[weight.name] = points.repeat_interleave(weight.group_size, 1)
    return found


def _bytes(tensor: torch.Tensor, bits: int) -> int:
    return -(-tensor.numel() * tensor.element_size() * bits // 8)


def node_macs(node: fx.Node, shapes: Shapes) -> int:
    """Multiply-accumulates of one node, 0 for an op that is no contraction, or one of weights alone (a
    spectral norm): that is not done per sample.

    Convolution: positions of the output (of the input, where it is transposed) times the weight. Linear and
    products: output elements times the length of the sum. Recurrent layers: steps times their matrices.
    Attention: queries times
    keys times (key size + value size) per head. einsum: the product of all its index ranges.
    """
    name, output = op_name(node), shapes.of(node)
    roles = roles_of(node)
    if node not in shapes.fed:
        return 0
    if roles is not None and roles.kind != "embedding":
        weight = shapes.of(argument(node, roles.weight))
        if "conv" in roles.kind:
            space = (shapes.of(argument(node, 0)) if "transpose" in roles.kind else output)[2 - len(weight) :]
            return prod(output[: len(output) + 1 - len(weight)]) * prod(space) * prod(weight)
        if len(weight) == 2:
            return prod(output[:-1]) * prod(weight)
    if name == "bilinear":
        return prod(output) * shapes.of(node.args[0])[-1] * shapes.of(node.args[1])[-1]
    if name in ("matmul", "mm", "bmm", "mv", "dot"):
        return prod(output) * shapes.of(node.args[0])[-1]
    if name in ("addmm", "baddbmm", "addbmm"):
        return prod(output) * shapes.of(node.args[1])[-1]
    if name == "scaled_dot_product_attention":
        query, key, value = (shapes.of(node.args[i]) for i in range(3))
        return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if name == "einsum":
        return _einsum_macs(node, shapes)
    if name in RECURRENT:
        return _recurrent_macs(node, shapes)
    if name in ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"):
        return shapes.of(node.args[0])[0] * sum(prod(shapes.of(node.args[i])) for i in (2, 3))
    return 0


def _einsum_macs(node: fx.Node, shapes: Shapes) -> int:
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    ranges: dict[str, int] = {}
    for term, operand in zip(equation.split("->")[0].split(","), operands):  # type: ignore[arg-type]
        shape = shapes.of(operand)
        free = len(shape) - len(term.replace("...", ""))
        letters = term.replace("...", "".join(chr(0x3B1 + i) for i in range(free)))
        for letter, size in zip(letters, shape):
            ranges[letter] = max(ranges.get(letter, 1), size)
    return prod(ranges.values())


def _recurrent_macs(node: fx.Node, shapes: Shapes) -> int:
    sequence = shapes.of(node.args[0])
    steps = prod(sequence[:-1])  # batch × time
    assert isinstance(node.target, torch._ops.OpOverload)
    weights: Any = node.args[[a.name for a in node.target._schema.arguments].index("params")]
    return steps * sum(prod(s) for s in map(shapes.of, weights) if len(s) == 2)


def _stored_tensors(model: Model, node: fx.Node) -> tuple[list[str], set[str]]:
    """Dotted names of the tensors that the node reads: its weight first, then the rest.

    Among them, and named apart, are the scales and zero points of int8 tensors: they cost bytes but are no
    parameters of the network.
    """
    names: list[str] = []
    scales: set[str] = set()
    roles = roles_of(node)
    ordered = list(node.all_input_nodes)
    if roles is not None:
        weight = argument(node, roles.weight)
        ordered.sort(key=lambda n: n is not weight)
    for source in ordered:
        weight_source = weight_at(model, source)
        if weight_source is None:
            continue
        names.append(weight_source.name)
        if weight_source.quantized:
            own = [str(s.target) for s in source.all_input_nodes[1:] if s.op == "get_attr"]
            names += own
            scales.update(own)
    return list(dict.fromkeys(names)), scales


def _kind(node: fx.Node, shapes: Shapes) -> str:
    name, roles = op_name(node), roles_of(node)
    if roles is not None and roles.groups is not None:
        given: Any = argument(node, roles.groups, 1)  # a node where the samples of a batch are its groups
        groups = shapes.size(given.meta["val"] if isinstance(given, fx.Node) else given)
        channels = shapes.of(argument(node, 0))[1]
        if groups > 1:
            return f"{'depthwise' if groups == channels else 'grouped'} {name}"
    return name
