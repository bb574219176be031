"""The graph that is trained: batch norm and dropout in training mode, sharing every tensor with the model.

The model's own graph stays in evaluation mode, so it can be measured between epochs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.answer import answer_index
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.edit.widen import Gathers, gathered
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import layers
from nncompress.train.optimizer import new_places
from nncompress.train.quantized import Copy, read_float_copies, round_biases_where_read

RUNNING_MEAN = 3  # argument of batch_norm


def training_graph(
    model: Model,
    *,
    training: bool = True,
    frozen: Sequence[str] = (),
    matched: Sequence[str] = (),
    copies: Mapping[str, Copy] | None = None,
) -> fx.GraphModule:
    """A copy of the graph over the same tensors: inputs -> the answer, then the outputs of `matched`.

    Where float `copies` of int8 weights are given, the graph reads them, and rounds with a gradient. Biases
    of integer layers are read as a kernel stores them.

    Batch norms whose weight or statistics match a pattern of `frozen` keep using, and do not update, their
    running statistics. A view becomes a reshape, since images may lie in memory channels last.
    """
    nodes = [layer_output(model, name) for name in matched]
    graph = fx.Graph()
    same: dict[fx.Node, fx.Node] = {}
    outputs: Any = graph.graph_copy(model.graph, same)
    graph.output((outputs[answer_index(model)], *(same[node] for node in nodes)))
    round_biases_where_read(model, same)
    graph.eliminate_dead_code()  # what only other outputs need is neither run nor trained
    if copies is not None:
        read_float_copies(graph, copies)
    copied = Model(fx.GraphModule(model.graph_module, graph), model.inputs, model.outputs, model.dynamic)
    copied.set_training(training)
    for node in graph.nodes:
        if op_name(node) == "view":
            node.target = torch.ops.aten.reshape.default
        if training and op_name(node) == "batch_norm":
            names = [str(a.target) for a in node.args[1 : RUNNING_MEAN + 1] if isinstance(a, fx.Node)]
            if any(matches(name, frozen) for name in names):
                node.update_arg(5, False)
    copied.graph_module.recompile()
    return copied.graph_module


def channels_last(tensor: Tensor) -> Tensor:
    """Images [N, C, H, W] and kernels, laid out as convolutions train fastest; other tensors as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def lay_out(model: Model, memory_format: Callable[[Tensor], Tensor]) -> None:
    """Change how the parameters lie in memory, in place: values and names stay, tied ones stay tied."""
    for parameter in model.graph_module.parameters():
        parameter.data = memory_format(parameter.data)


def trainable(model: Model, freeze: Sequence[str]) -> dict[str, torch.nn.Parameter]:
    """The parameters to train, by name; gradients are switched on for them and off for the rest.

    Raises:
        UsageError: a pattern matches nothing, or nothing is left to train.
    """
    every = dict(model.graph_module.named_parameters())  # tied ones once
    for pattern in freeze:
        if not any(fnmatch(name, pattern) for name in every):
            raise UsageError(
                f"train: --freeze {pattern} matches no parameter", expected="e.g. " + ", ".join([*every][:3])
            )
    chosen = {}
    for name, parameter in every.items():
        wanted = parameter.is_floating_point() and not matches(name, freeze)
        parameter.requires_grad_(wanted)
        if wanted:
            chosen[name] = parameter
    if not chosen:
        got = "--freeze " + " ".join(freeze) if freeze else "a model without floating-point parameters"
        raise UsageError("train: nothing is left to train", got=got)
    return chosen


def regularized(
    chosen: Mapping[str, torch.nn.Parameter], weights: Sequence[Tensor], patterns: Sequence[str]
) -> list[Tensor]:
    """The trained parameters that --l1 and --l2 apply to: by pattern, or the `weights` of all layers.

    Raises:
        UsageError: a pattern matches no trained parameter.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in chosen):
            raise UsageError(f"train: --regularize {pattern} matches no trained parameter")
    ids = {id(weight) for weight in weights}
    return [p for name, p in chosen.items() if (matches(name, patterns) if patterns else id(p) in ids)]


def layer_weights(model: Model, copies: Mapping[str, Copy]) -> list[Tensor]:
    """The weight of every layer, or its float copy."""
    names = [layer.weight.name for layer in layers(model)]
    return [model.tensor(copies[name].name if name in copies else name) for name in names]


def zero_masks(model: Model, copies: Mapping[str, Copy]) -> dict[str, Tensor]:
    """Per layer weight with zeros that pruning made, 1 where it is not zero.

    Training starts no weight at exactly zero, so a zero is one that pruning made. Not so, unless `prune` is
    in the history, where a weight is all zeros (an initialisation) or was rounded to int8.
    """
    weights = {id(weight) for weight in layer_weights(model, copies)}
    rounded = {copy.name for copy in copies.values()}
    pruned = any(record.get("pass") == "prune" for record in model.history)
    masks = {}
    for name, parameter in model.graph_module.named_parameters():
        if id(parameter) in weights:
            nonzero = parameter.detach() != 0
            if not nonzero.all() and (pruned or (nonzero.any() and name not in rounded)):
                masks[name] = nonzero.to(parameter.dtype)
    return masks


def widened_masks(
    masks: Mapping[str, Tensor], model: Model, gathers: Mapping[str, Gathers]
) -> dict[str, Tensor]:
    """The masks of a model that has grown: where weights are new, those that were made as zeros stay zero."""
    widened = dict(masks)
    for name in masks.keys() & gathers.keys():
        weight, dims = model.tensor(name).detach(), gathers[name]
        new = new_places(dims, weight.dim()).to(weight.device)
        widened[name] = torch.where(new, (weight != 0).to(weight.dtype), gathered(masks[name], dims))
    return widened


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def layer_output(model: Model, name: str) -> fx.Node:
    """The output of a layer: behind its batch norm, since in a quantized model that is part of the layer.

    Raises:
        UsageError: there is no such layer.
    """
    found = {layer.name: layer.node for layer in layers(model)}
    if name not in found:
        raise UsageError(
            f"train: --match {name} names no layer of the model", expected="e.g. " + ", ".join([*found][:4])
        )
    users = list(found[name].users)
    return users[0] if len(users) == 1 and op_name(users[0]) == "batch_norm" else found[name]
