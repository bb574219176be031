"""Ops that sum up, compare and choose along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import Value, numbers, scalar

_REDUCE: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: torch.mean(x, axes, keep),
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype),
    "ReduceMax": lambda x, axes, keep: torch.amax(x, axes, keep),
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keep),
    "ReduceL1": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep, dtype=x.dtype),
    "ReduceL2": lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep)),
    "ReduceLogSum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keep, dtype=x.dtype),
}


@rule(*_REDUCE, "ReduceProd")
def reduce(call: Call) -> Value:
    value = call.value(0)
    keep = bool(call.get("keepdims", 1))
    axes, noop = call.axes(1, value.ndim), bool(call.get("noop_with_empty_axes", 0))
    if not axes and noop:
        return value
    axes = axes or list(range(value.ndim))
    if isinstance(value, np.ndarray):
        if call.op == "ReduceProd":
            return numbers(np.prod(value, axis=tuple(axes), keepdims=keep, dtype=object))
        kinds: dict[str, Any] = {"ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min}
        if call.op in kinds:
            return np.asarray(kinds[call.op](value, axis=tuple(axes), keepdims=keep))
    x = call.tensor(0)
    if call.op == "ReduceProd":
        for axis in sorted(axes, reverse=True):
            x = torch.prod(x, axis, keep)
        return x
    if call.op == "ReduceMean" and not x.is_floating_point():
        return torch.mean(x.double(), axes, keep).to(x.dtype)
    return _REDUCE[call.op](x, axes, keep)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call) -> Value:
    x = call.tensor(0)
    axis = call.get("axis", 1 if call.opset < 13 else -1)
    function: Any = {
        "Softmax": F.softmax,
        "LogSoftmax": F.log_softmax,
        "Hardmax": _hardmax,
    }[call.op]
    if call.opset >= 13 or axis % x.dim() == x.dim() - 1:
        return function(x, axis)
    axis %= x.dim()  # older: over all dims from `axis` on, as one
    return function(torch.flatten(x, axis), axis).reshape(x.shape)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)


@rule("ArgMax", "ArgMin")
def argument(call: Call) -> Value:
    x, axis, keep = call.tensor(0), call.get("axis", 0), bool(call.get("keepdims", 1))
    function = torch.argmax if call.op == "ArgMax" else torch.argmin
    if call.get("select_last_index", 0):
        last = x.shape[axis] - 1
        return last - function(torch.flip(x, [axis]), axis, keep)
    return function(x, axis, keep)


@rule("TopK")
def top(call: Call) -> Any:
    x = call.tensor(0)
    count = int(scalar(call.array(1, "how many"))) if call.has(1) else call.get("k")
    found = torch.topk(
        x, count, call.get("axis", -1), bool(call.get("largest", 1)), bool(call.get("sorted", 1))
    )
    return [found.values, found.indices]


@rule("CumSum")
def cumulative(call: Call) -> Value:
    x, axis = call.tensor(0), int(scalar(call.array(1, "the axis")))
    backwards = bool(call.get("reverse", 0))
    x = torch.flip(x, [axis]) if backwards else x
    result = torch.cumsum(x, axis, dtype=x.dtype)
    if call.get("exclusive", 0):
        result = result - x
    return torch.flip(result, [axis]) if backwards else result


@rule("LpNormalization")
def lp_normalization(call: Call) -> Value:
    x, axis, p = call.tensor(0), call.get("axis", -1), call.get("p", 2)
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@rule("MeanVarianceNormalization")
def mean_variance(call: Call) -> Value:
    x, axes = call.tensor(0), call.get("axes", [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred * centred).mean(axes, keepdim=True).sqrt().add(1e-9)
