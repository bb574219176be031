"""Which activations go through int8.

So that a runtime finds `dequantize, op, quantize` around every op it has an int8 kernel for, and nothing
else is rounded:

- A convolution or linear layer reads a rounded activation; a convolution also writes one (without that there
  is no int8 convolution kernel), a linear layer only where the next op reads int8 too.
- A clamp (relu, relu6) belongs to the op before it: rounding happens behind the clamp, where its range is.
- A batch norm that cannot be folded runs in int8, as a 1×1 convolution of each channel alone, where what it
  reads is int8 and what it writes is wanted so; a convolution would read it rounded in any case.
- Additions, concatenations, pools and data movement between them run in int8 when all they read is rounded
  and what they write is wanted in int8 downstream. Data movement keeps the qparams of what it moves.

Other runtimes' int8 convolutions give floats as well, and compute what follows before they round
(`float_results`). For them no value is rounded that only float ops read, nor one between a convolution and
its activation (SiLU, Hardswish, GELU, …), nor the gate of a squeeze-and-excitation. Others add a residual
branch within the convolution (`fused_sums`), whose own result is then not rounded, or write the branches of a
concatenation into one tensor (`joined_concats`), which takes one grid for all, or multiply two activations in
int8 (`products`), whose zero must then be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, fx

from nncompress.ir.edit.fold import is_affine
from nncompress.ir.factors import Product
from nncompress.ir.formats.qdq import is_dequantized, is_quantized
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import CLAMPS, DROPOUTS, MOVES, PRODUCTS, op_name
from nncompress.ir.layers.weights import Layer, argument

# in 8 bits the same values, with the same qparams
SAME_VALUES = MOVES | {
    "pad", "constant_pad_nd", "max_pool1d", "max_pool2d", "max_pool3d", "upsample_nearest2d", "pixel_shuffle",
    "channel_shuffle",
}  # fmt: skip
PADDING_VALUE = {"pad": 3, "constant_pad_nd": 2}  # position of the argument
CONCATS = {"cat", "concat"}
COMPUTES = CONCATS | {"add", "mul", "avg_pool2d", "adaptive_avg_pool2d", "mean"}
ACTIVATIONS = {"silu", "hardswish", "gelu", "sigmoid", "hardsigmoid", "tanh", "leaky_relu", "elu", "mish"}


@dataclass
class Plan:
    """Activations to round, in graph order.

    Attributes:
        points: nodes whose value is to be rounded.
        same_qparams: for those that only move values, the node whose qparams they keep.
        one_grid: for those that have one grid together, the first of them.
        readers: who reads the rounded value. What a float op computed is rounded for int8 readers only.
        computed: those that an op computes from 8-bit values, other than a layer.
        factors: what products of activations multiply; they alone read it as signed bytes, on a grid that has
            the zero in its middle.
    """

    points: list[fx.Node] = field(default_factory=list)
    same_qparams: dict[fx.Node, fx.Node] = field(default_factory=dict)
    one_grid: dict[fx.Node, fx.Node] = field(default_factory=dict)
    readers: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    computed: set[fx.Node] = field(default_factory=set)
    factors: list[fx.Node] = field(default_factory=list)


def plan_activations(
    model: Model,
    layers: Collection[Layer],
    *,
    float_results: bool = False,
    fused_sums: bool = False,
    joined_concats: bool = False,
    products: Collection[Product] = (),
) -> Plan:
    """The activations to round so that `layers` run in int8.

    Args:
        float_results: of convolutions are no loss of time (`nncompress.targets.Target.float_results`).
        fused_sums: convolutions add what else a sum reads, before they round (`Target.fused_sums`).
        joined_concats: what a concatenation reads and gives has one grid (`Target.joined_concats`).
        products: of activations, that run in int8, too (`Target.products`).
    """
    nodes = list(model.graph.nodes)
    last = results(float_results=float_results)
    read = {layer.data for layer in layers}
    written = {last(layer.node) for layer in layers if layer.kind not in PRODUCTS}
    computed_by_layer = {last(layer.node) for layer in layers}
    layer_nodes = {layer.node for layer in layers}
    possible = _possible(nodes, read | written)
    wanted = _read_in_int8(nodes, read, possible) if float_results else _wanted(nodes, read, possible)
    asked = wanted if float_results else wanted | written
    plan = Plan()
    multiplied = dict.fromkeys(factor for product in products for factor in product.factors)
    plan.factors = [factor for factor in multiplied if not is_dequantized(factor)]
    for node in nodes:
        if node not in possible or node not in asked:
            continue
        if is_dequantized(node) or is_quantized(node) or last(node) is not node:
            continue
        plan.points.append(node)
        if node not in computed_by_layer and _stays_int8(node, possible):
            plan.computed.add(node)
        int8 = node in computed_by_layer or node in plan.computed
        plan.readers[node] = [user for user in node.users if int8 or user in layer_nodes or user in wanted]
        if op_name(node) in SAME_VALUES and node in plan.computed:
            plan.same_qparams[node] = node.args[0]
    if fused_sums:
        convolutions = {layer.node for layer in layers if layer.kind not in PRODUCTS}
        for node in _summands(nodes, plan.points, convolutions):
            plan.points.remove(node)
            del plan.readers[node]
    if joined_concats:
        plan.one_grid = _one_grid(plan)
        plan.same_qparams = {n: s for n, s in plan.same_qparams.items() if n not in plan.one_grid}
    return plan


def _one_grid(plan: Plan) -> dict[fx.Node, fx.Node]:
    """What concatenations of rounded values read and give, and what only moves these, each with the first."""
    first = {node: node for node in plan.points}

    def find(node: fx.Node) -> fx.Node:
        while first[node] is not node:
            node = first[node]
        return node

    joined = {n: n.all_input_nodes for n in plan.computed if op_name(n) in CONCATS}
    moved = {node: [source] for node, source in plan.same_qparams.items() if source in first}
    place = {node: position for position, node in enumerate(plan.points)}
    for node, sources in (joined | moved).items():
        both = sorted({find(n) for n in (node, *sources) if n in first}, key=place.__getitem__)
        first.update(dict.fromkeys(both, both[0]))
    grids = {find(node) for node in joined}
    return {node: find(node) for node in plan.points if find(node) in grids}


def _summands(
    nodes: list[fx.Node], points: list[fx.Node], convolutions: Collection[fx.Node]
) -> list[fx.Node]:
    """Of each sum of two rounded values, the last that is a convolution's and is read by nothing else."""
    found = []
    for total in nodes:
        if op_name(total) == "add" and result_of(total) in points and len(set(total.args)) == 2:
            own = [p for p in points if p in total.args and p in convolutions and len(p.users) == 1]
            found += own[-1:]
    return found


def norms_between(model: Model, layers: Collection[Layer]) -> list[fx.Node]:
    """The batch norms, in graph order, that would run in int8 between `layers` if they were convolutions."""
    nodes = list(model.graph.nodes)
    written = {result_of(layer.node) for layer in layers if layer.kind not in PRODUCTS}
    found = [node for node in nodes if is_affine(model, node) and node.meta["val"].dim() in (3, 4, 5)]
    while True:
        read = {layer.data for layer in layers} | {norm.args[0] for norm in found}
        possible = _possible(nodes, written | {result_of(norm) for norm in found})
        wanted = _wanted(nodes, read, possible)
        left = [norm for norm in found if norm.args[0] in possible and result_of(norm) in wanted]
        if len(left) == len(found):
            return found
        found = left


def _possible(nodes: list[fx.Node], rounded: Collection[fx.Node]) -> set[fx.Node]:
    """What can be had in int8 where `rounded` is."""
    possible: set[fx.Node] = set()
    for node in nodes:
        if node in rounded or is_dequantized(node) or _stays_int8(node, possible):
            possible.add(node)
    return possible


def _wanted(nodes: list[fx.Node], read: Collection[fx.Node], possible: set[fx.Node]) -> set[fx.Node]:
    """What an integer layer reads, at once or behind ops that stay in int8."""
    wanted: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in possible and (node in read or any(user in wanted for user in node.users)):
            wanted.add(node)
    return wanted


def _read_in_int8(nodes: list[fx.Node], read: Collection[fx.Node], possible: set[fx.Node]) -> set[fx.Node]:
    """What an integer layer reads, at once or behind ops that gain by 8 bits, too; a product does not."""
    wanted: set[fx.Node] = set()
    for node in reversed(nodes):
        passed_on = (user for user in node.users if op_name(user) != "mul" and _stays_int8(user, possible))
        if node in possible and (node in read or any(user in wanted for user in passed_on)):
            wanted.add(node)
    return wanted


def results(*, float_results: bool) -> Callable[[fx.Node], Any]:
    """What gives the value of a layer that is rounded: `result_of`, or with the activation behind it."""
    return partial(result_of, behind=CLAMPS | DROPOUTS | (ACTIVATIONS if float_results else set()))


def result_of(node: fx.Node, behind: Collection[str] = CLAMPS | DROPOUTS) -> fx.Node:
    """The last of the ops in `behind` that alone read `node` one after the other, or itself."""
    while len(node.users) == 1:
        (user,) = node.users
        if op_name(user) not in behind or user.args[0] is not node or not _clips_around_zero(user):
            break
        node = user
    return node


def _clips_around_zero(clamp: fx.Node) -> bool:
    """Rounding clips to a grid that holds 0; a clamp to a range without it is an op of its own."""
    bounds = {"clamp": (1, 2), "hardtanh": (1, 2), "clamp_min": (1, None), "clamp_max": (None, 1)}
    low, high = (
        None if position is None else argument(clamp, position)
        for position in bounds.get(op_name(clamp), (None, None))
    )
    return not (isinstance(low, float | int) and low > 0) and not (isinstance(high, float | int) and high < 0)


def _stays_int8(node: fx.Node, possible: set[fx.Node]) -> bool:
    if node.op != "call_function" or not _is_float(node):
        return False
    name = op_name(node)
    if name in SAME_VALUES:
        padding = argument(node, PADDING_VALUE[name], 0) if name in PADDING_VALUE else 0
        return node.args[0] in possible and padding in (0, None)
    if name in CLAMPS | DROPOUTS:
        return node.args[0] in possible
    if name not in COMPUTES:
        return False
    if name == "mean" and not _over_space(node):
        return False
    if name == "add" and node.kwargs.get("alpha", 1) != 1:
        return False
    if name == "avg_pool2d" and argument(node, 6) is not None:  # a divisor, which the kernel has not
        return False
    operands: list[object] = []
    fx.map_arg(node.args, operands.append)
    constants = [a for a in node.args if isinstance(a, float | int)] if name in ("add", "mul") else []
    return not constants and all(operand in possible for operand in operands)


def _over_space(mean: fx.Node) -> bool:
    """A global average pool: the mean over all dims behind the channels."""
    source, dims = mean.args[0], argument(mean, 1)
    rank = source.meta["val"].dim() if isinstance(source, fx.Node) else 0
    return (
        isinstance(dims, list | tuple) and sorted(int(d) % rank for d in dims) == list(range(2, rank)) != []
    )


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype.is_floating_point
