"""The graph that is trained: batch norm and dropout in training mode, sharing every tensor with the model.

The model's own graph stays in evaluation mode, so it can be measured between epochs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, fx

from nncompress.errors import UnsupportedError, UsageError
from nncompress.ir import Model
from nncompress.ir.normalize import op_name
from nncompress.ir.weights import layers

RUNNING_MEAN = 3  # argument of batch_norm


def training_graph(
    model: Model, *, training: bool = True, frozen: Sequence[str] = (), taps: Sequence[str] = ()
) -> fx.GraphModule:
    """A copy of the graph over the same tensors: inputs -> outputs, then the output of each layer in `taps`.

    Batch norms whose weight or statistics match a pattern of `frozen` keep using, and do not update, their
    running statistics. A view becomes a reshape, since images may lie in memory channels last.
    """
    nodes = [_layer_node(model, name) for name in taps]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = graph.graph_copy(model.graph, copies)
    graph.output((*outputs, *(copies[node] for node in nodes)))  # type: ignore[misc]
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


def refuse_untrainable(model: Model) -> None:
    """A quantized model has no gradient.

    Raises:
        UnsupportedError: it is quantized, or has no floating-point parameter.
    """
    for node in model.graph.nodes:
        if "quantize_per" in op_name(node):
            raise UnsupportedError(
                "train: this model is quantized, and rounding has no gradient",
                got=f"{op_name(node)} at {node.name}",
                remedy="train first, then nncompress quantize",
            )
    if not any(p.is_floating_point() for p in model.graph_module.parameters()):
        raise UnsupportedError("train: the model has no floating-point parameter")


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
        raise UsageError("train: nothing is left to train", got="--freeze " + " ".join(freeze))
    return chosen


def regularized(model: Model, chosen: dict[str, torch.nn.Parameter], patterns: Sequence[str]) -> list[Tensor]:
    """The trained parameters that --l1 and --l2 apply to: by pattern, or the weights of all layers.

    Raises:
        UsageError: a pattern matches no trained parameter.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in chosen):
            raise UsageError(f"train: --regularize {pattern} matches no trained parameter")
    weights = {id(model.tensor(layer.weight.name)) for layer in layers(model)}
    return [p for name, p in chosen.items() if (matches(name, patterns) if patterns else id(p) in weights)]


def zero_masks(model: Model, chosen: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Per layer weight with zeros in it, 1 where it is not zero. Training starts no weight at exactly zero,
    so a zero is one that pruning made; a weight of nothing but zeros is an initialisation, unless `prune`
    is in the history.
    """
    weights = {id(model.tensor(layer.weight.name)) for layer in layers(model)}
    pruned = any(record.get("pass") == "prune" for record in model.history)
    masks = {}
    for name, parameter in chosen.items():
        if id(parameter) in weights:
            nonzero = parameter.detach() != 0
            if not nonzero.all() and (pruned or nonzero.any()):
                masks[name] = nonzero.to(parameter.dtype)
    return masks


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _layer_node(model: Model, name: str) -> fx.Node:
    found = {layer.name: layer.node for layer in layers(model)}
    if name not in found:
        raise UsageError(
            f"train: --match {name} names no layer of the model", expected="e.g. " + ", ".join([*found][:4])
        )
    return found[name]


def check_match(student: Model, teacher: Model, names: Sequence[str]) -> None:
    """Layers to be matched exist in both and have outputs of one shape.

    Raises:
        UsageError: they do not.
    """
    for name in names:
        shapes = [tuple(_layer_node(m, name).meta["val"].shape[1:]) for m in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"train: the outputs of --match {name} differ in shape",
                got=f"{list(shapes[0])} here, {list(shapes[1])} in the teacher",
                remedy="match a layer whose nodes were not pruned",
            )
