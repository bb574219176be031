"""Inputs that became constants: what depends on them alone is stored, branches that they decide are taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.edit.computed import constants as constant_nodes
from nncompress.ir.edit.computed import store_constants, value_of
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.stated_constants import Constant, left_to_fix, remember_fixed


def fix_inputs(
    model: Model, constants: Sequence[Constant], origin: Path | str, notice: Callable[[str], None]
) -> None:
    """Give these inputs their values, in place: they are none any more.

    Raises:
        UsageError: the model has no such input, or the value is none of its dtype.
    """
    fixed = left_to_fix(constants, [spec.name for spec in model.inputs], model.metadata, str(origin))
    if not fixed:
        return
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    after = next(node for node in model.graph.nodes if node.op != "placeholder")
    by_name = {each.name: each for each in fixed}
    stored = []
    for spec, node in zip(model.inputs, placeholders):
        if spec.name in by_name:
            value = by_name[spec.name].tensor(spec.dtype, spec.shape)
            name = edit.add_tensor(model, spec.name, value, trainable=False)
            stored.append(edit.read_tensor(model, name, after))
            edit.replace_node(node, stored[-1])
    model.inputs = tuple(spec for spec in model.inputs if spec.name not in by_name)
    _take_branches(model)
    store_constants(model, of=stored)
    model.refresh()
    remembering(model, fixed, notice)


def remembering(model: Model, fixed: Sequence[Constant], notice: Callable[[str], None]) -> Model:
    """The model, which from now on says that these were inputs of its source."""
    if fixed:
        notice(remember_fixed(model.metadata, fixed))
    return model


def _take_branches(model: Model) -> None:
    """Of every choice whose condition is known, and the same everywhere, the one that it takes."""
    known = constant_nodes(model)
    for node in list(model.graph.nodes):
        if op_name(node) != "where" or len(node.args) != 3 or node.args[0] not in known:
            continue
        condition = value_of(model, node.args[0], {})
        if not (condition.all() or not condition.any()):
            continue
        taken = node.args[1 if condition.all() else 2]
        if isinstance(taken, fx.Node) and _alike(taken, node):
            edit.replace_node(node, taken)


def _alike(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta["val"], other.meta["val"]
    return (
        isinstance(a, torch.Tensor)
        and a.dtype == b.dtype
        and list(map(str, a.shape)) == list(map(str, b.shape))
    )
