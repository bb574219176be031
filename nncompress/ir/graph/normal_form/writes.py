"""Ops that write into an argument: what they write, and the op that returns it instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from nncompress.ir.graph.state import NEXT_STATE

# The first argument is then another name of the second: `a.set_(b)`, and what `a.data = b` leaves in a graph.
TAKES_MEMORY = {torch.ops.aten.set_.source_Tensor, torch.ops.aten._has_compatible_shallow_copy_type.default}


def is_write(node: fx.Node) -> bool:
    """It changes one of its arguments."""
    target = node.target
    return isinstance(target, OpOverload) and target._schema.is_mutable and target is not NEXT_STATE


def written_by(node: fx.Node) -> list[fx.Node]:
    """The arguments that the op changes."""
    found: list[fx.Node] = []
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.is_write:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            fx.map_arg(given, found.append)
    return found


def hands_on(target: Any) -> bool:
    """What it returns, if anything, is what it has written to, not a tensor of its own (rrelu's noise)."""
    returns = target._schema.returns
    return len(returns) < 2 and all(r.alias_info is not None and r.alias_info.is_write for r in returns)


def functional_form(target: Any) -> OpOverload | None:
    """The op that returns what `target` writes: `relu_` -> `relu`, `add.out` -> `add.Tensor`."""
    namespace, name = target._schema.name.split("::")
    stem = name[2:-2].removeprefix("i").join(("__", "__")) if name.endswith("__") else name.rstrip("_")

    def form(op: OpOverload) -> list[tuple[str, str]]:  # the first is "self" here, "input" there
        taken = [(a.name, str(a.type)) for a in op._schema.arguments if not a.is_out]
        return [("", kind) if at == 0 else (name, kind) for at, (name, kind) in enumerate(taken)]

    for each in (stem, f"{stem}_functional"):
        packet = getattr(getattr(torch.ops, namespace), each, None)
        names = packet.overloads() if packet is not None else []
        for overload in sorted(names, key=lambda overload: overload != target._overloadname):
            found = getattr(packet, overload)
            if (
                not found._schema.is_mutable
                and form(found) == form(target)
                and len(found._schema.returns) == 1
            ):
                return found
    return None
