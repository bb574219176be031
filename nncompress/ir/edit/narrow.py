"""Let a layer read or write fewer channels than the stream it sits on, or leave a residual branch out.

    narrow_reads     x ──index_select──▶ layer            the layer's input channels are a choice of x's
    narrow_writes    layer ──(norm)──▶ pad ──index_select  zeros in the places that are not written
    drop_branch      x + F(x)  ──▶  x + constant

Call `Model.refresh()` once after a set of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from nncompress.ir.edit.nodes import add_tensor, inserting_before, read_tensor, replace_node, replace_tensor
from nncompress.ir.graph.model import Model
from nncompress.ir.layers.weights import Layer

aten = torch.ops.aten


def narrow_reads(model: Model, layer: Layer, dim: int, kept: Sequence[int]) -> None:
    """Select the channels `kept` (of `dim` of its input) before an ungrouped layer."""
    chosen = torch.tensor(list(kept), dtype=torch.long)
    weight = layer.weight.value().index_select(layer.roles.inputs, chosen)
    replace_tensor(model, layer.weight.name, weight)
    index = read_tensor(model, add_tensor(model, f"{layer.name}.reads", chosen, trainable=False), layer.node)
    with inserting_before(layer.node) as call:
        selected = call(aten.index_select.default, layer.data, dim, index)
    layer.node.update_arg(layer.roles.data, selected)


def narrow_writes(
    model: Model,
    layer: Layer,
    dim: int,
    kept: Sequence[int],
    end: fx.Node,
    vectors: Sequence[str],
    rest: Tensor,
) -> None:
    """Compute the output channels `kept` only and put zeros (or a constant) back for the others.

    Args:
        dim: the channel dim of the output.
        end: the layer's node, or that of the norm behind it.
        vectors: stored vectors per output channel (bias, the norm's).
        rest: `[channels]`: what the other channels are; zero where they are kept.
    """
    chosen = torch.tensor(list(kept), dtype=torch.long)
    replace_tensor(model, layer.weight.name, layer.weight.value().index_select(layer.roles.outputs, chosen))
    for name in vectors:
        replace_tensor(model, name, model.tensor(name).detach().index_select(0, chosen))
    rank = len(end.meta["val"].shape)
    places = torch.full((len(rest),), len(chosen))  # the padded zero …
    places[chosen] = torch.arange(len(chosen))  # … but for what is written
    after = end.next
    name = add_tensor(model, f"{layer.name}.writes", places, trainable=False)
    index = read_tensor(model, name, after)
    with inserting_before(after) as call:
        padding = [0, 0] * (rank - 1 - dim % rank) + [0, 1]
        padded = call(aten.pad.default, end, padding)
        result = whole = call(aten.index_select.default, padded, dim, index)
    if bool(rest.any()):
        shape = [1] * rank
        shape[dim] = -1
        result = _plus(model, f"{layer.name}.constant", whole, rest.reshape(shape), after)
    end.replace_all_uses_with(result, delete_user_cb=lambda user: user not in (padded, whole))


def drop_branch(
    model: Model, add: fx.Node, shortcut: fx.Node, dim: int, constant: Tensor | None, name: str
) -> None:
    """Replace `add` by its operand `shortcut`, plus a constant `[channels]` if there is one."""
    if constant is None or not bool(constant.any()):
        replace_node(add, shortcut)
        return
    shape = [1] * len(add.meta["val"].shape)
    shape[dim] = -1
    replace_node(add, _plus(model, f"{name}.constant", shortcut, constant.reshape(shape), add))


def _plus(model: Model, name: str, value: fx.Node, constant: Tensor, before: fx.Node) -> fx.Node:
    stored = read_tensor(model, add_tensor(model, name, constant.squeeze(0)), before)
    with inserting_before(before) as call:
        return call(aten.add.Tensor, value, stored)
