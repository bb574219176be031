"""Residual branches: what is added to a shortcut, and can be narrowed or left out without touching it.

    y = x + F(x)

The channels of all values that such additions join are tied one to one. Pruned *grouped*, a channel leaves
the whole stream or stays. Pruned *separately*, each branch reads the channels of x that it wants (its first
layers select) and writes the channels of y that it wants (zeros are put back at the addition).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import Layer, layers


@dataclass(frozen=True)
class Branch:
    """One operand of an addition that has weighted layers of its own.

    Attributes:
        add: the addition.
        value: its operand that the branch computes.
        shortcut: its other operand.
        layers: the layers that nothing but the branch uses, in graph order.
        writer: the layer that makes `value`, if at most a batch norm stands between them.
    """

    add: fx.Node
    value: fx.Node
    shortcut: fx.Node
    layers: tuple[Layer, ...]
    writer: Layer | None

    @property
    def name(self) -> str:
        """The longest dotted prefix that its layers share: "layer1.0"."""
        names = [layer.name.split(".") for layer in self.layers]
        shared: list[str] = []
        for parts in zip(*(n[:-1] or n for n in names)):
            if len(set(parts)) > 1:
                break
            shared.append(parts[0])
        return ".".join(shared) or self.layers[0].name


def find_branches(model: Model) -> list[Branch]:
    """Every residual branch, in graph order.

    Where both operands of an addition have layers of their own (a projected shortcut), the one with more
    layers is the branch.
    """
    by_node = {layer.node: layer for layer in layers(model)}
    order = {node: i for i, node in enumerate(model.graph.nodes)}
    found = []
    for node in model.graph.nodes:
        operands = _addends(node)
        if operands is None:
            continue
        own = [
            sorted((n for n in _only_for(operand, node) if n in by_node), key=order.__getitem__)
            for operand in operands
        ]
        which = 0 if len(own[0]) >= len(own[1]) else 1
        if not own[which] or operands[1 - which].op == "get_attr":
            continue
        value = operands[which]
        found.append(
            Branch(
                node,
                value,
                operands[1 - which],
                tuple(by_node[n] for n in own[which]),
                by_node.get(_writer(value)),
            )
        )
    return found


def _addends(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two distinct, equally shaped operands of an addition of activations."""
    if node.op != "call_function" or op_name(node) not in ("add", "add_") or node.kwargs.get("alpha", 1) != 1:
        return None
    a, b = node.args[:2]
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
        return None
    left, right = a.meta.get("val"), b.meta.get("val")
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.dim() < 2:
        return None
    return (a, b) if left.shape == right.shape else None


def _only_for(operand: fx.Node, user: fx.Node) -> set[fx.Node]:
    """The nodes whose result reaches anything only through `operand` as read by `user`."""
    if set(operand.users) != {user}:
        return set()
    inside, waiting = {operand}, [operand]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source.op != "placeholder" and source not in inside and inside.issuperset(source.users):
                inside.add(source)
                waiting.append(source)
    return inside


def _writer(value: fx.Node) -> fx.Node:
    """The node behind a batch norm that only it feeds, or `value` itself."""
    source = value.args[0] if value.op == "call_function" and op_name(value) == "batch_norm" else None
    return source if isinstance(source, fx.Node) and len(source.users) == 1 else value


def norm_of(layer: Layer) -> fx.Node | None:
    """The batch norm over its output features that alone reads the layer's output, if there is one."""
    users = list(layer.node.users)
    if len(users) == 1 and op_name(users[0]) == "batch_norm" and users[0].args[0] is layer.node:
        rank = layer.node.meta["val"].dim()
        return users[0] if layer.channel_dim == 1 - rank else None
    return None


def sums_over_channels(layer: Layer) -> bool:
    """Every output of the layer reads every input channel: an ungrouped convolution or a linear layer."""
    return layer.groups == 1 and (
        layer.kind in ("linear", "addmm", "mm") or layer.kind.startswith(("conv1d", "conv2d", "conv3d"))
    )


def names(found: Sequence[Branch]) -> list[str]:
    """A distinct name per branch."""
    seen: dict[str, int] = {}
    result = []
    for branch in found:
        seen[branch.name] = seen.get(branch.name, 0) + 1
        result.append(branch.name if seen[branch.name] == 1 else f"{branch.name}#{seen[branch.name]}")
    return result
