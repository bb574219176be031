"""Weights that the graph computes from stored tensors alone, in every call anew: stored as what comes out.

Weight and spectral norm (Salimans & Kingma 2016; Miyato et al. 2018), standardised weights (Qiao et al.
2019), the slices of an attention's joint projection and adapters are such. Once trained, their value does not
change, and only a stored weight makes its op a layer that passes see and runtimes have integer kernels for.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import RECURRENT, op_name
from nncompress.ir.graph.places import layer_name
from nncompress.ir.graph.state import changed_tensors
from nncompress.ir.layers.recurrent import recurrent_parameters
from nncompress.ir.layers.weights import argument, roles_of, weight_at

GROWTH = 4  # times as many numbers as it is computed from: in 8 bits no larger than those were in float


def store_computed_weights(
    model: Model, only: Collection[str] | None = None, *, read_elsewhere: bool = False
) -> list[str]:
    """Store them, in place, and return their names; calls `model.refresh()` if there was one.

    Left as they are: weights computed from buffers alone (a table of frequencies, say) and those that would
    take much more room than what they are computed from, or as much again since others read that too.

    Args:
        only: the ops whose weights are meant, by name; None: all.
        read_elsewhere: also those that others read, too (a transpose that ties two layers).
    """
    constant = constants(model)
    slots: dict[fx.Node, tuple[fx.Node, str]] = {}
    for node in model.graph.nodes:
        if node in constant or (only is not None and op_name(node) not in only):
            continue
        for leaf, source in _weights_read(node).items():
            if source in constant and weight_at(model, source) is None:
                slots.setdefault(source, (node, leaf))
    values = {source: value_of(model, source, {}) for source in slots}
    idle = _unread(model, slots, constant)
    stored = []
    for source, (node, leaf) in slots.items():
        parameters = _parameters(model, behind(source))
        room = sum(model.tensor(str(n.target)).numel() for n in parameters)
        if not parameters or values[source].numel() > GROWTH * room:
            continue
        if leaf.startswith("weight") and not read_elsewhere and not idle.issuperset(parameters):
            continue
        kept = _taken_over(model, source, slots, idle, values[source])
        base = _base(node, kept or str(parameters[0].target))
        if kept in (base, f"{base}.{leaf}"):
            name = kept
            edit.replace_tensor(model, name, values[source])
        else:
            name = edit.add_tensor(model, _name(model, base, leaf), values[source])
        edit.replace_node(source, edit.read_tensor(model, name, source))
        stored.append(name)
    if stored:
        model.refresh()
    return stored


def store_constants(model: Model, of: Collection[fx.Node] | None = None) -> list[str]:
    """Store, in place, whatever is computed from stored tensors alone, and return the names.

    For a writer whose format lacks an op that only makes such a value. What stands for the weights of a
    quantized model stays computed.

    Args:
        of: only what depends on one of these nodes, and on no parameter, which is trained and pruned.
    """
    constant = {node for node in constants(model) if "quantize" not in op_name(node)}
    if of is not None:
        constant = {
            node
            for node in constant
            if not behind(node).isdisjoint(of) and not _parameters(model, behind(node))
        }
    values: dict[fx.Node, Any] = {}
    stored = []
    for node in list(model.graph.nodes):
        if node.op == "get_attr" or node not in constant or constant.issuperset(node.users):
            continue
        value = value_of(model, node, values)
        if isinstance(value, Tensor):
            read = next((n for n in model.graph.nodes if n.op == "get_attr" and n in behind(node)), None)
            prefix = "" if read is None else f"{layer_name(str(read.target))}."
            name = edit.add_tensor(model, f"{prefix}{op_name(node)}", value, trainable=False)
            edit.replace_node(node, edit.read_tensor(model, name, node))
            stored.append(name)
    if stored:
        model.refresh()
    return stored


def constants(model: Model) -> set[fx.Node]:
    """Nodes whose value depends on stored tensors alone and is the same in every call."""
    found: set[fx.Node] = set()
    state = changed_tensors(model.graph)
    for node in model.graph.nodes:
        if node.op == "get_attr" and node.target in state:
            continue
        tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
        schema = getattr(node.target, "_schema", None)
        same = node.target is getitem or (schema is not None and not schema.is_mutable)
        computed = node.op == "call_function" and same and torch.Tag.nondeterministic_seeded not in tags
        if node.op == "get_attr" or (computed and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def value_of(model: Model, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node not in known:
        if node.op == "get_attr":
            known[node] = model.tensor(str(node.target)).detach()
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: value_of(model, n, known))
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[node]


def behind(node: fx.Node) -> set[fx.Node]:
    """`node` and all that it is computed from."""
    found, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def _parameters(model: Model, among: set[fx.Node]) -> list[fx.Node]:
    """The nodes among these that read one, in the graph's order."""
    read = [n for n in model.graph.nodes if n.op == "get_attr" and n in among]
    return [n for n in read if isinstance(model.tensor(str(n.target)), torch.nn.Parameter)]


def _taken_over(
    model: Model, source: fx.Node, slots: Collection[fx.Node], idle: set[fx.Node], value: Tensor
) -> str:
    """The parameter of which the computed weight is another form (scaled, transposed, cast), in whose place
    it can be stored: the only one of its size in it, of which nothing else comes; "" for none."""
    own = behind(source)
    sized = {str(n.target) for n in _parameters(model, own)}
    sized = {name for name in sized if model.tensor(name).numel() == value.numel()}
    if len(sized) != 1:
        return ""
    (name,) = sized
    tensor = model.tensor(name)
    reads = {n for n in model.graph.nodes if n.op == "get_attr" and model.tensor(str(n.target)) is tensor}
    others = (slot for slot in slots if slot is not source)
    alone = reads <= own and reads <= idle and all(reads.isdisjoint(behind(slot)) for slot in others)
    return name if alone else ""


def _unread(model: Model, slots: Collection[fx.Node], constant: set[fx.Node]) -> set[fx.Node]:
    """The constants that nobody reads once the slots are stored: every way from them leads into one."""
    found: set[fx.Node] = set()
    for node in reversed(model.graph.nodes):
        if node in constant and all(user in slots or user in found for user in node.users):
            found.add(node)
    return found


def _weights_read(node: fx.Node) -> dict[str, fx.Node]:
    """What an op reads as its weights, and what they would be called in its layer."""
    if node.op == "call_function" and op_name(node) in RECURRENT:
        return recurrent_parameters(node)
    roles = roles_of(node)
    if roles is None:
        return {}
    found = {"weight": argument(node, roles.weight)}
    if roles.bias is not None:
        found["bias"] = argument(node, roles.bias)
    return {leaf: source for leaf, source in found.items() if isinstance(source, fx.Node)}


def _base(node: fx.Node, parameter: str) -> str:
    """ "conv.parametrizations.weight.original0" -> "conv", "in_proj_weight" -> "in_proj"."""
    if op_name(node) in RECURRENT and "weight" not in parameter:
        return node.name  # of an ONNX file, in which one tensor has the weights of all directions
    base = layer_name(re.sub(r"\.parametrizations\.\w+\.\w+$", ".weight", parameter))
    return re.sub(r"_(weight|bias)$", "", base)


def _name(model: Model, base: str, leaf: str) -> str:
    taken = edit.fresh_name(model, base) != base and isinstance(_attribute(model, base), Tensor)
    return f"{base}_{leaf}" if taken else f"{base}.{leaf}"


def _attribute(model: Model, name: str) -> Any:
    value: Any = model.graph_module
    for part in name.split("."):
        value = getattr(value, part)
    return value
