"""Ops that read and write at positions given by an index."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import (
    Value,
    as_tensor,
    is_symbolic,
    scalar,
    simplified,
)


@rule("Gather")
def gather(call: Call) -> Value:
    value, index, axis = call.value(0), call.value(1), call.get("axis", 0)
    if isinstance(value, np.ndarray) and isinstance(index, np.ndarray) and not is_symbolic(index):
        return simplified(np.asarray(np.take(value, simplified(index).astype(np.int64), axis)))
    x = as_tensor(value)
    axis %= x.dim()
    if isinstance(index, np.ndarray):
        if index.ndim == 0:
            return x.select(axis, scalar(index))
        index = as_tensor(index)
    elif axis == 0 and x.dim() == 2 and x.is_floating_point() and index.dim():
        return F.embedding(index, x)
    wrapped = torch.where(index < 0, index + x.shape[axis], index)
    picked = torch.index_select(x, axis, wrapped.reshape(-1))
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@rule("GatherElements")
def gather_elements(call: Call) -> Value:
    x, index, axis = call.tensor(0), call.tensor(1), call.get("axis", 0)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


@rule("GatherND")
def gather_nd(call: Call) -> Value:
    x, index, batch = call.tensor(0), call.tensor(1), call.get("batch_dims", 0)
    if batch:
        raise call.refusal("batch_dims other than 0")
    return x[tuple(index[..., i] for i in range(index.shape[-1]))]


@rule("ScatterND")
def scatter_nd(call: Call) -> Value:
    x, index, updates = call.tensor(0), call.tensor(1), call.tensor(2)
    reduction = call.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise call.refusal(f"the reduction {reduction}")
    place = tuple(index[..., i] for i in range(index.shape[-1]))
    return torch.index_put(x, place, updates, accumulate=reduction == "add")


@rule("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Value:
    x, index, updates = call.tensor(0), call.tensor(1), call.tensor(2)
    axis, reduction = call.get("axis", 0), call.get("reduction", "none")
    index = torch.where(index < 0, index + x.shape[axis], index)
    if reduction == "none":
        return torch.scatter(x, axis, index, updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return torch.scatter_reduce(x, axis, index, updates, names[reduction])


@rule("OneHot")
def one_hot(call: Call) -> Value:
    index, depth, values = call.tensor(0), int(scalar(call.array(1, "the depth"))), call.tensor(2)
    index = torch.where(index < 0, index + depth, index).to(torch.int64)
    axis = call.get("axis", -1) % (index.dim() + 1)
    places = torch.arange(depth).reshape([depth if i == axis else 1 for i in range(index.dim() + 1)])
    return torch.where(index.unsqueeze(axis) == places, values[1], values[0])


@rule("NonZero")
def nonzero(call: Call) -> Value:
    return np.array(np.nonzero(call.array(0, "which are not zero")), np.int64)
