"""Remove nodes that zero weights have made dead, without changing the function.

A node is dead in one of two ways:

- nobody reads it: every weight that consumes it is zero;
- it never varies: every weight that produces it is zero, so that only its bias (through norms and
  activations) comes out, a constant c. What c contributes to its readers, Σ w·c, moves into their biases.
  A padded convolution sees c inside the image and 0 around it, which no bias can express: there c must be 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from nncompress.analysis.couplings import Group, Member, find_couplings, remove_units
from nncompress.analysis.observe.statistics import observe
from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.ops import NORMS, PRODUCTS, op_name
from nncompress.ir.graph.verify import drift
from nncompress.ir.layers.weights import Layer, argument, layers, readers
from nncompress.passes.base import Change

SAME = 1e-4  # relative error that float32 sums in another order may show


@dataclass(frozen=True)
class _Constant:
    """What unit `unit` of a group adds to `layer`: its bias grows by `shift` [outputs]."""

    layer: Layer
    unit: int
    shift: torch.Tensor


def remove_dead_nodes(model: Model) -> list[Change]:
    """Remove every dead node of `model`, in place; one change per group that lost some.

    The outputs on random inputs are compared before and after; were they to differ, nothing is removed.
    """
    inputs = model.example_inputs(batch=4)
    couplings = find_couplings(model)
    seen = _observe(model, couplings.groups)
    removal: dict[str, list[int]] = {}
    shifts: list[_Constant] = []
    for group in couplings.groups:
        dead, constants = _dead_units(model, group, seen)
        dead = dead[: group.size - 1]  # a group keeps at least one unit
        if dead:
            removal[group.name] = dead
            shifts += [c for c in constants if c.unit in dead]
    if not removal:
        return []
    slim = model.copy()
    for constant in shifts:
        _fold(slim, constant)
    slim.refresh()
    remove_units(slim, removal)
    if not _same(model, slim, inputs):
        return [Change("dead nodes", "skipped: removing them would change the outputs", applied=False)]
    model.graph_module, model.traced_form = slim.graph_module, slim.traced_form
    sizes = {group.name: group.size for group in couplings.groups}
    return [
        Change(
            name,
            f"{len(units)} of {sizes[name]} nodes were dead and are gone",
            {"removed": units, "nodes_before": sizes[name]},
        )
        for name, units in removal.items()
    ]


def _dead_units(
    model: Model, group: Group, seen: dict[fx.Node, list[Any]]
) -> tuple[list[int], list[_Constant]]:
    if not group.consumers or any(_is_normalised_over(model, m) for m in group.members):
        return [], []
    unread = _all_zero(model, group, group.consumers)
    unfed = (
        _all_zero(model, group, group.producers) & ~unread if group.producers else np.zeros(group.size, bool)
    )
    dead, constants = np.flatnonzero(unread).tolist(), []
    for unit in np.flatnonzero(unfed).tolist():
        found = _constants(model, group, unit, seen)
        if found is not None:
            dead.append(unit)
            constants += found
    return sorted(dead), constants


def _all_zero(model: Model, group: Group, members: Sequence[Member]) -> Any:
    """Per unit: are all its slices of these members zero? bool [units]."""
    zero = np.ones(group.size, bool)
    for member in members:
        tensor = model.tensor(member.tensor).detach()
        largest = (
            tensor.abs().movedim(member.dim, 0).reshape(tensor.shape[member.dim], -1).amax(1).double().numpy()
        )
        alive = member.unit[(largest > 0) & (member.unit >= 0)]
        zero[alive] = False
    return zero


def _is_normalised_over(model: Model, member: Member) -> bool:
    """A layer or group norm over the group's dim would normalise the survivors differently."""
    norms = NORMS - {"batch_norm"}
    return any(op_name(user) in norms for node in readers(model, member.tensor) for user in node.users)


def _observe(model: Model, groups: Sequence[Group]) -> dict[fx.Node, list[Any]]:
    """What every consumer layer reads, on two batches of random inputs: layer node -> tensors."""
    wanted = {m.tensor for group in groups for m in group.consumers}
    sources = {layer.data for layer in layers(model) if layer.weight.name in wanted}
    values: dict[fx.Node, list[Any]] = {node: [] for node in sources}
    batches = [model.example_inputs(batch=2, seed=seed) for seed in (0, 1)]
    observe(model, batches, {node: [found.append] for node, found in values.items()})
    return values


def _constants(
    model: Model, group: Group, unit: int, seen: dict[fx.Node, list[Any]]
) -> list[_Constant] | None:
    """What the unit adds to each of its readers, or None where that is no constant a bias can hold."""
    found = []
    for layer in layers(model):
        members = [m for m in group.consumers if m.tensor == layer.weight.name]
        if not members:
            continue
        shift = _shift(layer, members, unit, seen.get(layer.data, []))
        if shift is None:
            return None
        found.append(_Constant(layer, unit, shift))
    return found


def _shift(layer: Layer, members: Sequence[Member], unit: int, values: list[Any]) -> Any:
    weight = layer.weight.value().double()
    total = torch.zeros(weight.shape[layer.roles.outputs], dtype=torch.float64)
    for member in members:
        if member.dim != layer.roles.inputs % weight.dim() or layer.groups != 1 or not values:
            return None
        axis = 1 if "conv" in layer.kind else values[0].dim() - 1
        for index in np.flatnonzero(member.unit == unit).tolist():
            channels = torch.cat([v.select(axis, index).flatten() for v in values])
            constant = channels[0].double()
            if not bool((channels == channels[0]).all()) or (constant != 0 and _padded(layer)):
                return None
            column = weight.select(member.dim, index)  # [outputs, *kernel]
            total += column.flatten(1).sum(1) * constant if column.dim() > 1 else column * constant
    return total


def _padded(layer: Layer) -> bool:
    """Does the layer mix its input with zeros of its own (padding, transposed convolution)?"""
    if layer.kind in PRODUCTS:
        return False
    if layer.kind in ("conv1d", "conv2d", "conv3d"):
        padding = argument(layer.node, 4, 0)
        return padding != "valid" and any(padding if isinstance(padding, list | tuple) else [padding])
    return True


def _fold(model: Model, constant: _Constant) -> None:
    """Add the constant's contribution to the reader's bias, giving it one where it has none."""
    if not bool(constant.shift.any()):
        return
    layer = next(each for each in layers(model) if each.name == constant.layer.name)
    if layer.roles.bias is None:  # matmul, mm: add after it
        name = edit.add_tensor(
            model, f"{layer.name}.folded_bias", constant.shift.to(layer.weight.value().dtype)
        )
        with model.graph.inserting_after(layer.node):
            bias = model.graph.get_attr(name)
        with model.graph.inserting_after(bias):
            added = model.graph.call_function(torch.ops.aten.add.Tensor, (layer.node, bias))
        layer.node.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
        return
    if layer.bias is None:
        value = constant.shift.to(layer.weight.value().dtype)
    else:
        value = (layer.bias.value().double() + constant.shift).to(layer.bias.value().dtype)
    name = edit.add_tensor(
        model, f"{layer.name.replace('#', '_')}.bias", value
    )  # others may share the old one
    edit.set_argument(layer.node, layer.roles.bias, edit.read_tensor(model, name, layer.node))


def _same(before: Model, after: Model, inputs: tuple[torch.Tensor, ...]) -> bool:
    with torch.no_grad():
        rows = drift(after, after.outputs_of(*inputs), before.outputs_of(*inputs))
    return all(row.amount <= SAME for row in rows)
