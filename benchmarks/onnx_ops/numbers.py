"""What changes each value, alone or by a factor of its channel or column."""

from __future__ import annotations

import math

import numpy as np
import torch
from onnx import helper
from torch.nn import functional as F

from benchmarks.onnx_ops.chain import OPS, Chain, gate, op, unary, with_scalar

unary("relu", "Relu", F.relu)
unary("sigmoid", "Sigmoid", torch.sigmoid)
unary("tanh", "Tanh", torch.tanh)
unary("gelu", "Gelu", F.gelu)
unary("gelu(tanh)", "Gelu", lambda x: F.gelu(x, approximate="tanh"), approximate="tanh")
unary("leaky_relu(0.3)", "LeakyRelu", lambda x: F.leaky_relu(x, 0.3), alpha=0.3)
unary("elu(0.5)", "Elu", lambda x: F.elu(x, 0.5), alpha=0.5)
unary("hard_sigmoid", "HardSigmoid", F.hardsigmoid, alpha=1 / 6, beta=0.5)
unary("hard_swish", "HardSwish", F.hardswish)
unary("softplus", "Softplus", F.softplus)
unary("abs", "Abs", torch.abs)
unary("neg", "Neg", torch.neg)
unary("exp", "Exp", torch.exp)
unary("floor", "Floor", torch.floor)
unary("round", "Round", torch.round)
unary("erf", "Erf", torch.erf)
unary("identity", "Identity", lambda x: x)
unary("flatten", "Flatten", lambda x: x.flatten(1), axis=1)
unary("softmax(-1)", "Softmax", lambda x: x.softmax(-1), axis=-1)
unary("softmax(1)", "Softmax", lambda x: x.softmax(1), axis=1)
unary("log_softmax(1)", "LogSoftmax", lambda x: x.log_softmax(1), axis=1)
with_scalar("x+2", "Add", 2.0, lambda x, s: x + s)
with_scalar("x-2", "Sub", 2.0, lambda x, s: x - s)
with_scalar("x*2", "Mul", 2.0, lambda x, s: x * s)
with_scalar("x*-1", "Mul", -1.0, lambda x, s: x * s)
with_scalar("x*0", "Mul", 0.0, lambda x, s: x * s)
with_scalar("x/3", "Div", 3.0, lambda x, s: x / s)
with_scalar("x**2", "Pow", 2.0, lambda x, s: x**s)
with_scalar("x**3", "Pow", 3.0, lambda x, s: x**s)
with_scalar("x**1", "Pow", 1.0, lambda x, s: x**s)
with_scalar("x**0", "Pow", 0.0, lambda x, s: x**s)
with_scalar("max(x,0)", "Max", 0.0, lambda x, s: x.clamp_min(s))
with_scalar("min(x,1)", "Min", 1.0, lambda x, s: x.clamp_max(s))

for low, high in ((0.0, 6.0), (-0.5, 0.5), (None, 0.5), (0.2, None), (1.0, -1.0)):

    def _clip(c: Chain, low: float | None = low, high: float | None = high) -> None:
        result = torch.clamp(c.x, low, high)
        c.then(result, "Clip", *("" if each is None else c.floats(each) for each in (low, high)))

    OPS[f"clip({low},{high})"] = _clip


for scale in (1.702, 1.0, 0.5, -1.0):
    gate(
        f"quick_gelu({scale})",
        lambda c, s=scale: (
            c.add("Sigmoid", c.add("Mul", c.value, c.floats(s))),
            torch.sigmoid(c.x * s),
        ),
    )
gate("silu", lambda c: (c.add("Sigmoid", c.value), torch.sigmoid(c.x)))
gate("mish", lambda c: (c.add("Tanh", c.add("Softplus", c.value)), torch.tanh(F.softplus(c.x))))
for divisor, half, one in (
    (math.sqrt(2), 0.5, 1.0),
    (1.0, 0.5, 1.0),
    (math.sqrt(2), 0.3, 1.0),
    (math.sqrt(2), 0.5, 2.0),
):

    def _spelled_gelu(c: Chain, d: float = divisor, h: float = half, o: float = one) -> None:
        inner = c.add("Add", c.add("Erf", c.add("Div", c.value, c.floats(d))), c.floats(o))
        c.value = c.add("Mul", c.add("Mul", c.value, inner), c.floats(h))
        c.x = c.x * (torch.erf(c.x / d) + o) * h

    OPS[f"spelled_gelu({divisor:.3g},{half},{one})"] = _spelled_gelu


@op("argmax,cast")
def _(c: Chain) -> None:
    indices = c.add("ArgMax", c.value, axis=1, keepdims=1)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(c.x.dtype).removeprefix("torch.")))
    c.value, c.x = c.add("Cast", indices, to=kind), c.x.argmax(1, keepdim=True).to(c.x.dtype)


for through in (torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool):

    def _cast(c: Chain, through: torch.dtype = through) -> None:
        kinds = [np.dtype(str(d).removeprefix("torch.")) for d in (through, c.x.dtype)]
        there, back = map(helper.np_dtype_to_tensor_dtype, kinds)
        value = c.x.abs() if through == torch.uint8 else c.x
        given = c.add("Abs", c.value) if through == torch.uint8 else c.value
        c.value = c.add("Cast", c.add("Cast", given, to=there), to=back)
        c.x = value.to(through).to(c.x.dtype)

    OPS[f"cast({str(through).removeprefix('torch.')})"] = _cast

for mask in ("half", "row"):

    def _masked(c: Chain, mask: str = mask) -> None:
        seen = c.weight(*c.x.shape[1:], salt=mask) > 0
        seen[..., :1] = True
        if mask == "row":
            seen[0] = True
        value = c.add("Where", c.constant(seen), c.value, c.floats(-math.inf))
        c.value = c.add("Softmax", value, axis=-1)
        c.x = c.x.masked_fill(~seen, -math.inf).softmax(-1)

    OPS[f"masked softmax({mask})"] = _masked


@op("where(x>0)")
def _(c: Chain) -> None:
    test = c.add("Greater", c.value, c.floats(0.0))
    c.value = c.add("Where", test, c.value, c.floats(-3.0))
    c.x = torch.where(c.x > 0, c.x, torch.tensor(-3.0, dtype=c.x.dtype))


@op("not(x>0)")
def _(c: Chain) -> None:
    test = c.add("Not", c.add("Greater", c.value, c.floats(0.0)))
    c.value = c.add("Where", test, c.value, c.floats(5.0))
    c.x = torch.where(~(c.x > 0), c.x, torch.tensor(5.0, dtype=c.x.dtype))


@op("x+x")
def _(c: Chain) -> None:
    c.then(c.x + c.x, "Add", c.value)


@op("x*sigmoid(mean)")
def _(c: Chain) -> None:
    pooled = c.add("Sigmoid", c.add("GlobalAveragePool", c.value))
    c.value, c.x = c.add("Mul", c.value, pooled), c.x * torch.sigmoid(c.x.mean((2, 3), keepdim=True))


@op("+per channel")
def _(c: Chain) -> None:
    bias = c.weight(c.x.shape[1], 1, 1, salt="bias")
    c.then(c.x + bias, "Add", c.constant(bias))


@op("*per channel")
def _(c: Chain) -> None:
    factor = c.weight(c.x.shape[1], 1, 1, salt="factor")
    c.then(c.x * factor, "Mul", c.constant(factor))


@op("+per column")
def _(c: Chain) -> None:
    bias = c.weight(c.x.shape[-1], salt="column")
    c.then(c.x + bias, "Add", c.constant(bias))


@op("prelu")
def _(c: Chain) -> None:
    slope = c.weight(c.x.shape[1], salt="slope")
    c.then(F.prelu(c.x, slope), "PRelu", c.constant(slope.view(-1, *[1] * (c.x.dim() - 2))))


@op("1/sqrt")
def _(c: Chain) -> None:
    root = c.add("Sqrt", c.add("Abs", c.value))
    c.value, c.x = c.add("Div", c.floats(1.0), root), 1 / c.x.abs().sqrt()
