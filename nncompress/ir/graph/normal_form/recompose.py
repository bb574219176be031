"""Norms and convolutions that a decomposition or a trace has spelled out, said as one op again.

`ExportedProgram.run_decompositions()` (what goes to ExecuTorch, say) leaves core ATen ops. Passes know
most of them; norms it turns into ops with several results, and batch norms lose the flag that training
switches. TorchScript traces, too, have the convolution that all others are made of.

| core ATen                                              | becomes                    |
|--------------------------------------------------------|----------------------------|
| `_native_batch_norm_legit_no_training`                 | `batch_norm`, in inference |
| `_native_batch_norm_legit.no_stats`                    | `batch_norm`, of the batch |
| `_native_batch_norm_legit_functional`                  | `batch_norm`               |
| `native_layer_norm`, `native_group_norm`               | `layer_norm`, `group_norm` |
| `_softmax`, `_log_softmax`                             | `softmax`, `log_softmax`   |
| `convolution`, `_convolution`                          | `conv2d`, `conv_transpose2d`, …|
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: Any, eps: Any) -> Any:
    return aten.batch_norm.default, (x, weight, bias, mean, var, False, momentum, eps, False)


def _of_the_batch(x: Any, weight: Any, bias: Any, training: Any, momentum: Any, eps: Any) -> Any:
    return aten.batch_norm.default, (x, weight, bias, None, None, True, momentum, eps, False)


def _of_either(x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: Any, *rest: Any) -> Any:
    return aten.batch_norm.default, (x, weight, bias, mean, var, training, *rest, False)


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: Any) -> Any:
    return aten.layer_norm.default, (x, shape, weight, bias, eps, False)


def _group_norm(x: Any, weight: Any, bias: Any, n: Any, c: Any, positions: Any, groups: Any, eps: Any) -> Any:
    return aten.group_norm.default, (x, groups, weight, bias, eps, False)


COMPOSED: dict[Any, Callable[..., Any]] = {
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten._native_batch_norm_legit.no_stats: _of_the_batch,
    aten._native_batch_norm_legit_functional.default: _of_either,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
}


CONVOLUTIONS = (aten.convolution.default, aten._convolution.default)
DENSE = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
SOFTMAX = {aten._softmax.default: aten.softmax.int, aten._log_softmax.default: aten.log_softmax.int}


def recompose(graph: fx.Graph) -> None:
    """Replace those of which only the normalised values are read, not the statistics."""
    for node in list(graph.nodes):
        softmax = SOFTMAX.get(node.target)
        if softmax is not None and node.args[2:] == (False,) and not node.kwargs:
            node.target, node.args = softmax, node.args[:2]
        if node.target in CONVOLUTIONS:
            _say_convolution(node)
        make = COMPOSED.get(node.target)
        if make is None or node.kwargs or len(node.args) != len(node.target._schema.arguments):
            continue
        reads = [u for u in node.users if u.users]
        if len(reads) != 1 or reads[0].args[1:] != (0,):
            continue
        (read,) = reads
        target, args = make(*node.args)
        with graph.inserting_before(node):
            whole = graph.call_function(target, args)
        whole.meta["val"] = read.meta.get("val")
        read.replace_all_uses_with(whole)
        for user in list(node.users):
            graph.erase_node(user)
        graph.erase_node(node)


def _say_convolution(node: fx.Node) -> None:
    """As the op of its number of dims; what only says how it is computed (`_convolution`) goes."""
    image = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    dims = 0 if image is None else image.dim() - 2
    if node.kwargs or len(node.args) < 9 or not 1 <= dims <= 3:
        return
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args[:9]
    stride, padding, dilation, output_padding = (
        list(each) * dims if len(each) == 1 else list(each)  # type: ignore[arg-type]
        for each in (stride, padding, dilation, output_padding)
    )
    if transposed:
        node.target = TRANSPOSED[dims - 1]
        node.args = (x, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        node.target = DENSE[dims - 1]
        node.args = (x, weight, bias, stride, padding, dilation, groups)
