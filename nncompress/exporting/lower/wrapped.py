"""Padding that wraps around, said as what it is: the ends of a tensor laid beside it.

OpenVINO does not read ONNX's `wrap`, TensorRT neither, and ExecuTorch compiles what it then cannot run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.graph.normal_form.decompose import take_apart

aten = torch.ops.aten


def lay_ends_beside(graph: fx.Graph) -> None:
    """Replace every circular padding by slices and concatenations, in place."""
    for node in list(graph.nodes):
        if node.target is aten.pad.default and "circular" in node.args:
            take_apart(graph, node, _wrap)


def _wrap(x: Tensor, amounts: Sequence[int], mode: str, value: Any = None) -> Tensor:
    if min(amounts) < 0:
        raise NotImplementedError
    for last, (before, behind) in enumerate(zip(amounts[::2], amounts[1::2])):
        dim = -1 - last
        parts = [x]
        if before:
            parts.insert(0, x.narrow(dim, x.shape[dim] - before, before))
        if behind:
            parts.append(x.narrow(dim, 0, behind))
        x = torch.cat(parts, dim)
    return x
