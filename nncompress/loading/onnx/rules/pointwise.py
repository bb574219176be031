"""Ops that compute element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import (
    DTYPES,
    HOST_DTYPES,
    Value,
    as_tensor,
    each,
    is_float,
    is_symbolic,
    scalar,
    simplified,
)

_SAME_NAME = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor"),
    *("Log", "Neg", "Round", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh", "Sigmoid", "Reciprocal", "Relu"),
    "IsNaN",
)
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(torch, name.lower()) for name in _SAME_NAME},
    "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
}
_OF_SIZES: dict[str, Callable[[Any], Any]] = {  # whole numbers stay floats where they are
    "Neg": lambda n: -n,
    "Abs": abs,
    "Floor": lambda n: torch.sym_float(math.floor(n)),
    "Ceil": lambda n: torch.sym_float(math.ceil(n)),
}


@rule(*_UNARY)
def unary(call: Call) -> Value:
    value = call.value(0)
    if isinstance(value, np.ndarray) and is_symbolic(value) and call.op in _OF_SIZES:
        return each(value, _OF_SIZES[call.op])
    if isinstance(value, np.ndarray) and not is_symbolic(value):
        return call.computed(np.asarray(simplified(value)))
    x = as_tensor(value)
    if call.op == "Relu" and x.dtype == torch.int8:
        return torch.clamp(x, min=0)
    return _UNARY[call.op](x)


@rule("Identity")
def identity(call: Call) -> Value:
    return call.value(0)


def _division(a: Any, b: Any) -> Any:
    """Integers are divided towards zero."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        floats = any(
            isinstance(x, float) or (isinstance(x, Tensor) and x.is_floating_point()) for x in (a, b)
        )
        return torch.div(a, b) if floats else torch.div(a, b, rounding_mode="trunc")
    if is_float(a) or is_float(b):
        return a / b
    down = a // b
    if any(isinstance(x, np.ndarray) and is_symbolic(x) for x in (a, b)):  # sizes: not negative
        return down
    return down + ((a % b != 0) & ((a < 0) != (b < 0)))


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _division,
    "Equal": lambda a, b: a == b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "And": lambda a, b: torch.logical_and(a, b) if isinstance(a, Tensor) else np.logical_and(a, b),
    "Or": lambda a, b: torch.logical_or(a, b) if isinstance(a, Tensor) else np.logical_or(a, b),
    "Xor": lambda a, b: torch.logical_xor(a, b) if isinstance(a, Tensor) else np.logical_xor(a, b),
    "BitwiseAnd": lambda a, b: a & b,
    "BitwiseOr": lambda a, b: a | b,
    "BitwiseXor": lambda a, b: a ^ b,
}


@rule(*_BINARY)
def binary(call: Call) -> Value:
    a, b = call.value(0), call.value(1)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return simplified(np.asarray(_BINARY[call.op](a, b)))
    logical = call.op in ("And", "Or", "Xor")
    left, right = (as_tensor(a), as_tensor(b)) if logical else _together(a, b)
    return _BINARY[call.op](left, right)


def _together(a: Value, b: Value) -> tuple[Any, Any]:
    """Operands of one op: a single known number beside a tensor stays a number."""
    return _beside(a, b), _beside(b, a)


def _beside(value: Value, other: Value) -> Any:
    if isinstance(value, Tensor) or not isinstance(other, Tensor):
        return value
    if value.ndim == 0 and not (value.dtype.kind == "f" and not other.is_floating_point()):
        return scalar(value)
    return as_tensor(
        value, other.dtype if value.dtype.kind in "iu" and not other.is_floating_point() else None
    )


@rule("Pow")
def power(call: Call) -> Value:
    a, b = call.value(0), call.value(1)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.power(a, b).astype(a.dtype)
    if isinstance(b, np.ndarray) and b.size == 1:
        return torch.pow(as_tensor(a), scalar(b)).to(as_tensor(a).dtype)
    base = as_tensor(a)
    return torch.pow(base, as_tensor(b)).to(base.dtype)


@rule("Mod")
def modulo(call: Call) -> Value:
    a, b, signed_as_first = call.value(0), call.value(1), bool(call.get("fmod", 0))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        as_first = signed_as_first and not is_symbolic(a) and not is_symbolic(b)  # sizes: not negative
        return np.asarray((np.fmod if as_first else np.remainder)(a, b))
    return (torch.fmod if signed_as_first else torch.remainder)(*map(as_tensor, (a, b)))


@rule("Max", "Min")
def extreme(call: Call) -> Value:
    values = call.values()
    if all(isinstance(v, np.ndarray) for v in values):
        reduce = np.maximum if call.op == "Max" else np.minimum
        result: Any = values[0]
        for other in values[1:]:
            result = reduce(result, other)
        return np.asarray(result)
    number = next((scalar(v) for v in values if isinstance(v, np.ndarray) and v.ndim == 0), None)
    if len(values) == 2 and number is not None:  # a clamp
        x = next(v for v in values if isinstance(v, Tensor))
        return torch.clamp(x, min=number) if call.op == "Max" else torch.clamp(x, max=number)
    tensors = _one_dtype(values)
    result = tensors[0]
    for other in tensors[1:]:
        result = torch.maximum(result, other) if call.op == "Max" else torch.minimum(result, other)
    return result


def _one_dtype(values: list[Value]) -> list[Tensor]:
    dtype = next(v.dtype for v in values if isinstance(v, Tensor))
    return [as_tensor(v, dtype) for v in values]


@rule("Sum", "Mean")
def total(call: Call) -> Value:
    values = [as_tensor(v) for v in call.values()]
    result = values[0]
    for other in values[1:]:
        result = result + other
    return result / len(values) if call.op == "Mean" else result


@rule("Where")
def where(call: Call) -> Value:
    condition, a, b = call.value(0), call.value(1), call.value(2)
    if all(isinstance(v, np.ndarray) for v in (condition, a, b)):
        return simplified(np.where(np.asarray(condition).astype(bool), a, b))
    if isinstance(condition, np.ndarray) and condition.size == 1:
        condition = torch.tensor(bool(scalar(condition)))
    dtype = next((v.dtype for v in (a, b) if isinstance(v, Tensor)), None)
    return torch.where(as_tensor(condition), as_tensor(a, dtype), as_tensor(b, dtype))


_OF_FLOAT8 = ["saturate", "round_mode"]  # to which nothing is cast: it is refused


@rule("Cast", ignores=_OF_FLOAT8)
def cast(call: Call) -> Value:
    value, to = call.value(0), int(call.get("to"))
    if to not in DTYPES:
        raise call.refusal(f"the element type {to}")
    if isinstance(value, np.ndarray):
        if is_symbolic(value) and to in (6, 7):
            return each(value, torch.sym_int)
        if is_symbolic(value) and to in (1, 11):
            return each(value, torch.sym_float)
        if not is_symbolic(value) and to in HOST_DTYPES:
            return simplified(value).astype(HOST_DTYPES[to])
    return as_tensor(value).to(DTYPES[to])


@rule("CastLike", ignores=_OF_FLOAT8)
def cast_like(call: Call) -> Value:
    return call.tensor(0).to(call.tensor(1).dtype)


@rule("Clip")
def clip(call: Call) -> Value:
    x = call.value(0)
    low, high = (call.get(name) for name in ("min", "max"))
    low = call.value(1) if call.has(1) else low
    high = call.value(2) if call.has(2) else high
    if isinstance(x, np.ndarray) and not isinstance(low, Tensor) and not isinstance(high, Tensor):
        return np.clip(x, low, high)
    x = as_tensor(x)
    bounds: list[Any] = [scalar(v) if isinstance(v, np.ndarray) and v.size == 1 else v for v in (low, high)]
    for position, bound in enumerate(bounds):
        if isinstance(bound, Tensor) and bound.numel() == 1:
            stored = call.walk.known(call._node.input[position + 1])
            bounds[position] = scalar(stored) if stored is not None else bound
    bounds = [None if isinstance(v, float) and math.isinf(v) else v for v in bounds]
    if any(isinstance(v, Tensor) for v in bounds):  # of the input: not to be compared with anything
        return torch.clamp(x, *(None if v is None else torch.as_tensor(v, dtype=x.dtype) for v in bounds))
    if bounds == [None, None]:
        return x
    if bounds == [0.0, None]:
        return torch.relu(x)
    if None not in bounds and x.is_floating_point() and bounds[0] <= bounds[1]:
        return F.hardtanh(x, *bounds)
    return torch.clamp(x, *bounds)


@rule("IsInf")
def is_infinite(call: Call) -> Value:
    x = call.tensor(0)
    up, down = call.get("detect_positive", 1), call.get("detect_negative", 1)
    if up and down:
        return torch.isinf(x)
    return x == math.inf if up else x == -math.inf if down else torch.zeros_like(x, dtype=torch.bool)


# --- activations with parameters --------------------------------------------------------------------------


@rule("LeakyRelu")
def leaky_relu(call: Call) -> Value:
    return F.leaky_relu(call.tensor(0), call.get("alpha", 0.01))


@rule("PRelu")
def prelu(call: Call) -> Value:
    x, slope = call.tensor(0), call.tensor(1)
    if slope.numel() == 1 or (
        x.dim() > 1 and slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0] == x.shape[1]
    ):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, x * slope)


@rule("Elu")
def elu(call: Call) -> Value:
    return F.elu(call.tensor(0), call.get("alpha", 1.0))


@rule("Celu")
def celu(call: Call) -> Value:
    return F.celu(call.tensor(0), call.get("alpha", 1.0))


@rule("Selu")
def selu(call: Call) -> Value:
    x, alpha, gamma = (
        call.tensor(0),
        call.get("alpha", 1.6732631921768188),
        call.get("gamma", 1.0507010221481323),
    )
    return gamma * F.elu(x, alpha)


@rule("HardSigmoid")
def hard_sigmoid(call: Call) -> Value:
    x, alpha, beta = call.tensor(0), call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


@rule("ThresholdedRelu")
def thresholded_relu(call: Call) -> Value:
    x = call.tensor(0)
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@rule("Gelu", "com.microsoft.Gelu")
def gelu(call: Call) -> Value:
    return F.gelu(call.tensor(0), approximate=call.get("approximate", "none"))


@rule("com.microsoft.FastGelu", "com.microsoft.BiasGelu")
def biased_gelu(call: Call) -> Value:
    x = call.tensor(0) + call.tensor(1) if call.has(1) else call.tensor(0)
    return F.gelu(x, approximate="tanh" if call.op == "FastGelu" else "none")


@rule("com.microsoft.QuickGelu", "Swish")
def quick_gelu(call: Call) -> Value:
    x, alpha = call.tensor(0), call.get("alpha", 1.702 if call.op == "QuickGelu" else 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@rule("Shrink")
def shrink(call: Call) -> Value:
    x, bias, bound = call.tensor(0), call.get("bias", 0.0), call.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, zero))


@rule("BitShift")
def shift(call: Call) -> Value:
    """Of unsigned numbers, for most of which torch has no kernels: in int64, where they are the same bits."""
    x, left = call.tensor(0), call.get("direction") == "LEFT"
    if x.dtype.is_signed:
        return torch.bitwise_left_shift(x, call.tensor(1)) if left else x >> call.tensor(1)
    bits, by = x.to(torch.int64), call.tensor(1).to(torch.int64)
    if left:
        moved = bits << by
        return (moved if x.dtype.itemsize == 8 else moved & (1 << 8 * x.dtype.itemsize) - 1).to(x.dtype)
    half = (bits >> 1) & torch.iinfo(torch.int64).max  # without the sign, which is a bit like others
    return torch.where(by == 0, bits, half >> (by - 1).clamp_min(0)).to(x.dtype)


@rule("Dropout", ignores=["ratio", "seed"])  # what training drops
def dropout(call: Call) -> Value:
    """As in evaluation: the identity (a graph exported for training says so itself, and is refused)."""
    training = call.has(2) and bool(scalar(call.array(2, "its training mode")))
    if training or (call.opset < 7 and not call.get("is_test", 0)):
        raise call.refusal("it is in training mode")
    if call.has(1):
        call.value(1)  # the share that training would drop
    return call.value(0)
