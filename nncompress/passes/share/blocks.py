"""Residual blocks and stages, found in the graph itself.

A block ends in an addition of two activations of the same shape and begins at their nearest common ancestor.
Its residual branch is the operand with more convolutions on its way, the other one is the shortcut. A block
continues the stage of the one before it if it keeps the spatial size, and nothing between the two changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import Layer, layers


@dataclass(frozen=True)
class Block:
    """One residual block.

    Attributes:
        addition: the node that it ends in.
        entry: the activation that branch and shortcut both begin at.
        convolutions: all convolutions of the residual branch, in graph order.
        identity: its shortcut is the entry itself.
        stage: number of its stage, counted from 0.
    """

    addition: fx.Node
    entry: fx.Node
    convolutions: tuple[Layer, ...]
    identity: bool
    stage: int


def find_blocks(model: Model, shapes: Shapes) -> list[Block]:
    """The residual blocks in graph order; a convolution belongs to the innermost block around it."""
    nodes = list(model.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    convolutions = {layer.node: layer for layer in layers(model) if "conv" in layer.kind}
    ancestors: dict[fx.Node, int] = {}  # as bits, the node itself included; stored tensors are none
    found: dict[fx.Node, Block] = {}
    claimed: set[fx.Node] = set()
    stages = 0
    for node in nodes:
        bits = 0 if node.op == "get_attr" else 1 << place[node]
        for source in node.all_input_nodes:
            bits |= ancestors[source]
        ancestors[node] = bits
        operands = _operands(node, shapes)
        if operands is None:
            continue
        common = ancestors[operands[0]] & ancestors[operands[1]]
        if not common:
            continue
        entry = nodes[common.bit_length() - 1]
        ways = [
            [n for n in nodes[place[entry] + 1 : place[node]] if ancestors[o] >> place[n] & 1]
            for o in operands
        ]
        branches = [[n for n in way if n in convolutions and n not in claimed] for way in ways]
        branch = max((0, 1), key=lambda i: len(branches[i]))
        if not branches[branch]:
            continue
        claimed.update(branches[0], branches[1])
        stage = _continued(entry, node, found, shapes)
        found[node] = Block(
            addition=node,
            entry=entry,
            convolutions=tuple(convolutions[n] for n in branches[branch]),
            identity=operands[1 - branch] is entry,
            stage=stages if stage is None else stage,
        )
        stages += stage is None
    return list(found.values())


def _operands(node: fx.Node, shapes: Shapes) -> tuple[fx.Node, fx.Node] | None:
    """The two activations that a residual addition adds."""
    if node.op != "call_function" or op_name(node) != "add" or len(node.args) != 2:
        return None
    a, b = node.args
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)) or a is b:
        return None
    return (a, b) if len(shapes.of(a)) > 2 and shapes.of(a) == shapes.of(b) else None


def _continued(entry: fx.Node, addition: fx.Node, blocks: dict[fx.Node, Block], shapes: Shapes) -> int | None:
    """The stage that a block continues, None where it begins one."""
    size = shapes.of(addition)[2:]
    stages: set[int] = set()
    seen, waiting = {entry}, [entry]
    while waiting:
        node = waiting.pop()
        if shapes.of(node)[2:] != size or node.op == "placeholder":
            return None
        if node in blocks:
            stages.add(blocks[node].stage)
            continue
        sources = [n for n in node.all_input_nodes if n.op != "get_attr" and n not in seen]
        seen.update(sources)
        waiting += sources
    return stages.pop() if len(stages) == 1 else None


def passes_sum_on(blocks: Sequence[Block]) -> bool:
    """Is it a pre-activation network: do its identity shortcuts read the sum itself, not its activation?"""
    additions = {block.addition for block in blocks}
    entries = [block.entry in additions for block in blocks if block.identity]
    return sum(entries) * 2 > len(entries)
