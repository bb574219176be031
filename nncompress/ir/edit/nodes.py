"""All surgery on the graph: parameters added, replaced and removed, calls inserted and replaced.

Nothing outside this file creates nodes. After a set of edits call `Model.refresh()` once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor

from nncompress.ir.graph.form import form_of
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.normal_form.normalize import remove_dead_code
from nncompress.ir.layers.weights import argument

aten = torch.ops.aten


@contextmanager
def keeping_shapes(model: Model) -> Iterator[None]:
    """Edits that leave the shape of every value as it was, and refreshes; nothing is exported again where the
    new nodes that compute say their own (`meta["val"]`)."""
    right = model.has_shapes
    yield
    if right:
        remove_dead_code(model.graph_module)
        _tell_stored_shapes(model)
        model.traced_form = form_of(model.graph_module)
    model.refresh()


def _tell_stored_shapes(model: Model) -> None:
    values = (node.meta.get("val") for node in model.graph.nodes if node.op == "placeholder")
    mode = next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)
    for node in model.graph.nodes:
        if mode is not None and node.op == "get_attr" and "val" not in node.meta:
            node.meta["val"] = mode.from_tensor(model.tensor(str(node.target)), static_shapes=True)


def fresh_name(model: Model, wanted: str) -> str:
    """A dotted tensor name that is free: `wanted`, or `wanted_2`, `wanted_3`, …"""
    name, count = wanted, 1
    while _exists(model.graph_module, name):
        count += 1
        name = f"{wanted}_{count}"
    return name


def _exists(module: torch.nn.Module, name: str) -> bool:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def add_tensor(model: Model, name: str, value: Tensor, *, trainable: bool = True) -> str:
    """Store a new parameter (or buffer) under a free dotted name close to `name`; returns the name it got."""
    module: torch.nn.Module = model.graph_module
    name = fresh_name(model, _outside_tensors(module, name))
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
    if trainable and value.dtype.is_floating_point:
        module.register_parameter(leaf, torch.nn.Parameter(value.detach().clone().contiguous()))
    else:
        module.register_buffer(leaf, value.detach().clone().contiguous())
    return name


def _outside_tensors(module: torch.nn.Module, name: str) -> str:
    """The dotted name, `conv.w_0_bias` for `conv.w_0.bias` where `conv.w_0` is no module (a layer of an .onnx
    is called as its weight is)."""
    parts = name.split(".")
    for depth, part in enumerate(parts[:-1], start=1):
        held: Any = getattr(module, part, None)
        if held is None:
            break
        if not isinstance(held, torch.nn.Module):
            return ".".join([*parts[: depth - 1], "_".join(parts[depth - 1 :])])
        module = held
    return name


def replace_tensor(model: Model, name: str, value: Tensor) -> None:
    """Put a tensor of another shape in the place of a stored one, for all of its (tied) names."""
    old = model.tensor(name)
    fresh: Tensor = value.detach().clone().contiguous()
    if isinstance(old, torch.nn.Parameter):
        fresh = torch.nn.Parameter(fresh, requires_grad=old.requires_grad)
    for alias in names_of(model, old):
        prefix, _, leaf = alias.rpartition(".")
        owner = model.graph_module.get_submodule(prefix)
        (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = fresh  # type: ignore[assignment]


def remove_tensor(model: Model, name: str) -> None:
    """Drop a stored tensor that no node reads."""
    prefix, _, leaf = name.rpartition(".")
    delattr(model.graph_module.get_submodule(prefix), leaf)


def names_of(model: Model, tensor: Tensor) -> list[str]:
    """Every dotted name under which this very tensor is stored."""
    module = model.graph_module
    found = [n for n, p in module.named_parameters(remove_duplicate=False) if p is tensor]
    return found + [n for n, b in module.named_buffers(remove_duplicate=False) if b is tensor]


@contextmanager
def inserting_before(node: fx.Node) -> Iterator[Callable[..., fx.Node]]:
    """Gives `call(target, *args, **kwargs) -> node` that inserts before `node`."""
    with node.graph.inserting_before(node):

        def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
            return node.graph.call_function(target, args, kwargs)

        yield call


def read_tensor(model: Model, name: str, before: fx.Node) -> fx.Node:
    """A get_attr node for the stored tensor `name`, placed before `before`."""
    with model.graph.inserting_before(before):
        return model.graph.get_attr(name)


def replace_node(old: fx.Node, new: fx.Node) -> None:
    """All readers of `old` read `new`; `old` goes."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    if not old.users:
        old.graph.erase_node(old)


def set_argument(node: fx.Node, position: int, value: Any) -> None:
    """Set a positional argument of an ATen call, writing out the defaults before it that were left away."""
    given: list[Any] = [*node.args, *(argument(node, i) for i in range(len(node.args), position + 1))]
    given[position] = value
    node.args = tuple(given)
    schema = node.target._schema.arguments if isinstance(node.target, torch._ops.OpOverload) else ()
    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in [a.name for a in schema[: len(given)]]}


def tie_tensors(model: Model, names: Sequence[str]) -> None:
    """Store one tensor, the first, under all these names; whoever read another of them reads the first."""
    shared = model.tensor(names[0])
    for name in names[1:]:
        old = model.tensor(name)
        if old is shared:
            continue
        aliases = names_of(model, old)
        for alias in aliases:
            prefix, _, leaf = alias.rpartition(".")
            owner = model.graph_module.get_submodule(prefix)
            (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = shared  # type: ignore[assignment]
        for node in model.graph.nodes:
            if node.op == "get_attr" and str(node.target) in aliases:
                node.target = names[0]
