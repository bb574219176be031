"""Normalisations, matrix products, sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.onnx_ops.chain import OPS, Chain, op


def _norm(c: Chain) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = c.x.shape[1]
    gain, shift, mean = (c.weight(n, salt=salt) for salt in ("gain", "shift", "mean"))
    return gain, shift, mean, c.weight(n, salt="variance").abs() + 0.1


for epsilon in (1e-5, 1e-1):

    def _batch_norm(c: Chain, epsilon: float = epsilon) -> None:
        gain, shift, mean, variance = _norm(c)
        result = F.batch_norm(c.x, mean, variance, gain, shift, eps=epsilon)
        c.then(result, "BatchNormalization", *map(c.constant, (gain, shift, mean, variance)), epsilon=epsilon)

    OPS[f"batch_norm({epsilon:g})"] = _batch_norm

    def _instance_norm(c: Chain, epsilon: float = epsilon) -> None:
        gain, shift, *_ = _norm(c)
        result = F.instance_norm(c.x, weight=gain, bias=shift, eps=epsilon)
        c.then(result, "InstanceNormalization", c.constant(gain), c.constant(shift), epsilon=epsilon)

    OPS[f"instance_norm({epsilon:g})"] = _instance_norm

    def _layer_norm(c: Chain, epsilon: float = epsilon) -> None:
        n = c.x.shape[-1]
        gain, shift = c.weight(n, salt="gain"), c.weight(n, salt="shift")
        result = F.layer_norm(c.x, (n,), gain, shift, epsilon)
        c.then(result, "LayerNormalization", c.constant(gain), c.constant(shift), axis=-1, epsilon=epsilon)

    OPS[f"layer_norm({epsilon:g})"] = _layer_norm

    for axes in ((-1,), (1,), (2, 3), (1, 2, 3)):

        def _spelled(c: Chain, epsilon: float = epsilon, axes: Any = axes) -> None:
            """(x − mean) / sqrt(var + ε) · gain + shift, along these axes."""
            x, dims = c.x, c.ints(*axes)
            shape = [x.shape[a] if a in [b % x.dim() for b in axes] else 1 for a in range(x.dim())]
            while shape[0] == 1 and len(shape) > 1:
                shape = shape[1:]
            gain, shift = c.weight(*shape, salt="gain"), c.weight(*shape, salt="shift")
            mean = x.mean(axes, keepdim=True)
            variance = ((x - mean) ** 2).mean(axes, keepdim=True)
            centred = c.add("Sub", c.value, c.add("ReduceMean", c.value, dims))
            spread = c.add("ReduceMean", c.add("Pow", centred, c.floats(2.0)), dims)
            divided = c.add("Div", centred, c.add("Sqrt", c.add("Add", spread, c.floats(epsilon))))
            c.value = c.add("Add", c.add("Mul", divided, c.constant(gain)), c.constant(shift))
            c.x = (x - mean) / torch.sqrt(variance + epsilon) * gain + shift

        OPS[f"spelled_norm({epsilon:g};{','.join(map(str, axes))})"] = _spelled

    def _rms(c: Chain, epsilon: float = epsilon) -> None:
        gain = c.weight(c.x.shape[-1], salt="gain")
        square = c.add("ReduceMean", c.add("Pow", c.value, c.floats(2.0)), c.ints(-1))
        root = c.add("Sqrt", c.add("Add", square, c.floats(epsilon)))
        inverse = c.add("Div", c.floats(1.0), root)
        c.value = c.add("Mul", c.add("Mul", c.value, inverse), c.constant(gain))
        c.x = c.x * (1 / torch.sqrt((c.x**2).mean(-1, keepdim=True) + epsilon)) * gain

    OPS[f"rms_norm({epsilon:g})"] = _rms


@op("group_norm")
def _(c: Chain) -> None:
    gain, shift, *_ = _norm(c)
    result = F.group_norm(c.x, 2, gain, shift)
    flat = c.add("Reshape", c.value, c.ints(0, 2, -1))
    ones = c.floats([1.0, 1.0]), c.floats([0.0, 0.0])
    normal = c.add("InstanceNormalization", flat, *ones)
    back = c.add("Reshape", normal, c.ints(*c.x.shape))
    shape = (1, -1, *[1] * (c.x.dim() - 2))
    c.value = c.add("Add", c.add("Mul", back, c.constant(gain.view(shape))), c.constant(shift.view(shape)))
    c.x = result


@op("matmul")
def _(c: Chain) -> None:
    weight = c.weight(5, c.x.shape[-1]).T.contiguous()
    c.then(c.x @ weight, "MatMul", c.constant(weight))


@op("matmul+bias")
def _(c: Chain) -> None:
    weight, bias = c.weight(5, c.x.shape[-1]).T.contiguous(), c.weight(5)
    product = c.add("MatMul", c.value, c.constant(weight))
    c.value, c.x = c.add("Add", product, c.constant(bias)), c.x @ weight + bias


@op("weight@x")
def _(c: Chain) -> None:
    weight = c.weight(5, c.x.shape[-2])
    c.value, c.x = c.add("MatMul", c.constant(weight), c.value), weight @ c.x


for name, perm in {"xT@x": (0, 1, 3, 2), "batched": (0, 2, 3, 1)}.items():

    def _product(c: Chain, perm: Any = perm) -> None:
        turned = c.x.permute(perm)
        other = c.weight(*turned.shape[:-2], turned.shape[-1], 3, salt="other")
        value = c.add("Transpose", c.value, perm=list(perm))
        c.value, c.x = c.add("MatMul", value, c.constant(other)), turned @ other

    OPS[f"transpose({name})@w"] = _product


@op("x@xT*s")
def _(c: Chain) -> None:
    turned = c.add("Transpose", c.value, perm=[0, 1, 3, 2])
    scaled = c.add("Mul", c.add("MatMul", c.value, turned), c.floats(0.3))
    c.value, c.x = scaled, c.x @ c.x.mT * 0.3


@op("gemm(alpha,beta)")
def _(c: Chain) -> None:
    weight, bias = c.weight(5, c.x.shape[-1]), c.weight(5)
    result = 0.5 * c.x @ weight.T + 2.0 * bias
    if c.x.dim() != 2:
        raise RuntimeError("a matrix only")
    c.then(result, "Gemm", c.constant(weight), c.constant(bias), alpha=0.5, beta=2.0, transB=1)


for function in ("sum", "mean", "amax", "prod"):
    for axes, kept in (((1,), 1), ((-1,), 0), ((2, 3), 0), ((2, 3), 1), ((0, 1), 1)):
        name = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "prod": "ReduceProd"}[function]
        if function == "prod" and len(axes) > 1:
            continue

        def _reduce(c: Chain, f: str = function, n: str = name, axes: Any = axes, kept: int = kept) -> None:
            dims: Any = axes[0] if f == "prod" else axes
            result = getattr(c.x, f)(dims, keepdim=bool(kept))
            c.then(result, n, c.ints(*axes), keepdims=kept)

        OPS[f"{function}({','.join(map(str, axes))}{',kept' if kept else ''})"] = _reduce


@op("sum of squares")
def _(c: Chain) -> None:
    c.then((c.x**2).sum((2, 3), keepdim=True), "ReduceSumSquare", c.ints(2, 3))


@op("l2")
def _(c: Chain) -> None:
    c.then(c.x.norm(2, -1, keepdim=True), "ReduceL2", c.ints(-1))


@op("cumsum")
def _(c: Chain) -> None:
    c.then(c.x.cumsum(1), "CumSum", c.constant(1, np.int64))
