"""Norms that a decomposition has spelled out, said as one op again.

`ExportedProgram.run_decompositions()` (what goes to ExecuTorch, say) leaves core ATen ops. Passes know
most of them; norms it turns into ops with several results, and batch norms lose the flag that training
switches.

| core ATen                                              | becomes                    |
|--------------------------------------------------------|----------------------------|
| `_native_batch_norm_legit_no_training`                 | `batch_norm`, in inference |
| `_native_batch_norm_legit.no_stats`                    | `batch_norm`, of the batch |
| `native_layer_norm`, `native_group_norm`               | `layer_norm`, `group_norm` |
| `_softmax`, `_log_softmax`                             | `softmax`, `log_softmax`   |
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


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: Any) -> Any:
    return aten.layer_norm.default, (x, shape, weight, bias, eps, False)


def _group_norm(x: Any, weight: Any, bias: Any, n: Any, c: Any, positions: Any, groups: Any, eps: Any) -> Any:
    return aten.group_norm.default, (x, groups, weight, bias, eps, False)


COMPOSED: dict[Any, Callable[..., Any]] = {
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten._native_batch_norm_legit.no_stats: _of_the_batch,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
}


SOFTMAX = {aten._softmax.default: aten.softmax.int, aten._log_softmax.default: aten.log_softmax.int}


def recompose(graph: fx.Graph) -> None:
    """Replace those of which only the normalised values are read, not the statistics."""
    for node in list(graph.nodes):
        softmax = SOFTMAX.get(node.target)
        if softmax is not None and node.args[2:] == (False,) and not node.kwargs:
            node.target, node.args = softmax, node.args[:2]
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
