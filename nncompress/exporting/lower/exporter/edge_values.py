"""Functions that torch's ONNX exporter says rightly for usual numbers and wrongly at the edges, said exactly.

It rounds quotients of floats down that were rounded up before (0.6 // 0.1 is 5), makes floats of integers
that are divided (24 bits of 64 are left), and forgets that 0 · log 0 is 0 where the 0 is a number.
Angles it takes from a quotient, in which the sign of a zero is lost; NaN has a sign with torch that is 0.
A bound that is NaN ONNX Runtime takes for none.
Whether integers are NaN, and what they are rounded to, no runtime answers.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan, pi
from typing import Any

import torch
from torch import Tensor

from nncompress.exporting.lower.exporter.special_functions import log1p

aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)
_DIVIDED = (torch.int32, torch.int64)  # integers that ONNX Runtime divides
Number = Tensor | float


def _pair(a: Number, b: Number, *, floats: bool = False) -> tuple[Tensor, Tensor]:
    """Both as tensors of the type that their result has; `floats`: which is none of integers."""
    kind = torch.result_type(a, b)
    return _as(torch.get_default_dtype() if floats and not kind.is_floating_point else kind, a, b)


def _as(kind: torch.dtype, a: Number, b: Number) -> tuple[Tensor, Tensor]:
    place = a if isinstance(a, Tensor) else b
    assert isinstance(place, Tensor)
    given = (x if isinstance(x, Tensor) else torch.full_like(place, x, dtype=kind) for x in (a, b))
    first, second = (x.to(kind) for x in given)
    return first, second


def whole_quotient(a: Number, b: Number, *, rounding_mode: str | None = None) -> Tensor:
    kind = torch.result_type(a, b)
    if rounding_mode is None or kind == torch.bool:
        raise NotImplementedError  # which the exporter has right
    if kind.is_floating_point:
        # Halves torch divides as float32, which a single number is, too: 1 // 0.1 is 9, of halves 10.
        a, b = _as(torch.float32 if kind in _HALVES else kind, a, b)
        return (torch.trunc(a / b) if rounding_mode == "trunc" else _floor_quotient(a, b)).to(kind)
    a, b = _pair(a, b)
    wide = kind if kind in _DIVIDED else torch.int32
    dividend, divisor = a.to(wide), b.to(wide)
    quotient = torch.floor_divide(dividend, divisor)  # of integers the exporter has that right
    if rounding_mode == "trunc":
        quotient = quotient + ((quotient < 0) & (quotient * divisor != dividend)).to(wide)
    return quotient.to(kind)


def _floor_divide(a: Number, b: Number) -> Tensor:
    if not torch.result_type(a, b).is_floating_point:
        raise NotImplementedError
    return whole_quotient(a, b, rounding_mode="floor")


def _floor_quotient(a: Tensor, b: Tensor) -> Tensor:
    """As torch and Python have it: of what is left when the rest is taken away."""
    rest = torch.fmod(a, b)
    quotient = (a - rest) / b
    quotient = torch.where((rest != 0) & ((b < 0) != (rest < 0)), quotient - 1, quotient)
    floor = torch.floor(quotient)
    floor = torch.where(quotient - floor > 0.5, floor + 1, floor)
    return torch.where(b == 0, a / b, floor)


def _fmod(a: Number, b: Number) -> Tensor:
    a, b = _pair(a, b)
    if a.dtype not in _DIVIDED:
        raise NotImplementedError
    return a - whole_quotient(a, b, rounding_mode="trunc") * b


def _times_log(log: Callable[[Tensor], Tensor]) -> Callable[[Number, Number], Tensor]:
    """x · log y, which is 0 where x is, whatever the logarithm; NaN where y is."""

    def product(x: Number, y: Number) -> Tensor:
        x, y = _pair(x, y, floats=True)
        return torch.where((x == 0) & ~y.isnan(), torch.zeros_like(x * y), x * log(y))

    return product


def _clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """By a number that is NaN, of which nothing but NaN comes."""
    if not any(bound is not None and isnan(bound) for bound in (low, high)):
        raise NotImplementedError
    return torch.full_like(x, nan, dtype=torch.result_type(x, nan))


def _relu(x: Tensor) -> Tensor:
    """Which ONNX Runtime has of floats alone."""
    if x.is_floating_point():
        raise NotImplementedError
    return x.clamp_min(0)


def _power(x: Tensor, exponent: float) -> Tensor:
    """Of integers, as products: ONNX Runtime takes it of floats."""
    if x.is_floating_point() or not isinstance(exponent, int) or exponent < 1:
        raise NotImplementedError
    rest = _power(x * x, exponent // 2) if exponent > 1 else x
    return rest * x if exponent % 2 and exponent > 1 else rest


def _squeeze(x: Tensor, dims: int | list[int]) -> Tensor:
    """ONNX refuses to squeeze what is longer than 1."""
    listed = [dims] if isinstance(dims, int) else dims
    for dim in sorted((dim % x.dim() for dim in listed), reverse=True):
        if not isinstance(x.shape[dim], int):
            raise NotImplementedError
        x = x.squeeze(dim) if x.shape[dim] == 1 else x
    return x


def _is_below_zero(x: Tensor) -> Tensor:
    """A zero with a sign, too."""
    return (x < 0) | (1 / x < 0)


def _atan2(y: Tensor, x: Tensor) -> Tensor:
    kind = _pair(y, x, floats=True)[0].dtype
    y, x = _as(torch.float32 if kind in _HALVES else kind, y, x)
    high, wide = y.abs(), x.abs()
    slope = torch.where(high == wide, (high > 0).to(x.dtype), high / wide)  # of zeros, of infinities
    angle = torch.atan(slope)
    angle = torch.where(_is_below_zero(x), pi - angle, angle)
    return torch.where(_is_below_zero(y), -angle, angle).to(kind)


def _angle(x: Tensor) -> Tensor:
    """Of a real number: π where it is below zero."""
    if x.is_complex():
        raise NotImplementedError
    if not x.is_floating_point():
        return (x < 0).to(torch.get_default_dtype()) * pi
    return torch.where(x.isnan(), x, (x < 0).to(x.dtype) * pi)


def _sign(x: Tensor) -> Tensor:
    """Of NaN it is 0."""
    if not x.is_floating_point():
        raise NotImplementedError
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


def _heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    return torch.where(x == 0, at_zero, (x > 0).to(at_zero.dtype))


def _lerp(a: Tensor, b: Tensor, weight: Number) -> Tensor:
    """From the nearer end."""
    from_first, from_last = a + weight * (b - a), b - (b - a) * (1 - weight)
    if isinstance(weight, Tensor):
        return torch.where(weight.abs() < 0.5, from_first, from_last)
    return from_first if abs(weight) < 0.5 else from_last


def _of_integers(steps: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def checked(x: Tensor) -> Tensor:
        if x.is_floating_point():
            raise NotImplementedError
        return steps(x)

    return checked


def _product_of_all(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return _product_of_integers(x.flatten(), 0, dtype=dtype)


def _product_of_integers(
    x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """By halves: ONNX Runtime multiplies them as float64, of which 53 bits are left."""
    kind = dtype or (x.dtype if x.is_floating_point() or x.is_complex() else torch.int64)
    count = x.shape[dim] if x.dim() else 1
    if kind.is_floating_point or kind.is_complex or not isinstance(count, int):
        raise NotImplementedError
    x = x.to(kind)
    if not count:
        x, count = torch.ones_like(x.sum(dim, keepdim=True)), 1
    while count > 1:
        half = count // 2
        rest = x.narrow(dim, 2 * half, count - 2 * half)
        x = torch.cat([x.narrow(dim, 0, half) * x.narrow(dim, half, half), rest], dim)
        count -= half
    return x if keepdim or not x.dim() else x.squeeze(dim)


def _sum_of_integers(x: Tensor, dim: list[int] | None = None, keepdim: bool = False, **kind: Any) -> Tensor:
    """Of which none is NaN."""
    if x.is_floating_point():
        raise NotImplementedError
    return torch.sum(x, dim, keepdim, **kind)


EDGE_VALUES: dict[Any, Callable[..., Tensor]] = {
    aten.div.Tensor_mode: whole_quotient,
    aten.div.Scalar_mode: whole_quotient,
    aten.floor_divide.default: _floor_divide,
    aten.floor_divide.Scalar: _floor_divide,
    aten.fmod.Tensor: _fmod,
    aten.fmod.Scalar: _fmod,
    aten.xlogy.Tensor: _times_log(torch.log),
    aten.xlogy.Scalar_Self: _times_log(torch.log),
    aten.xlogy.Scalar_Other: _times_log(torch.log),
    aten.special_xlog1py.default: _times_log(log1p),
    aten.special_xlog1py.self_scalar: _times_log(log1p),
    aten.special_xlog1py.other_scalar: _times_log(log1p),
    aten.atan2.default: _atan2,
    aten.angle.default: _angle,
    aten.sign.default: _sign,
    aten.sgn.default: _sign,
    aten.heaviside.default: _heaviside,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.clamp.default: _clamp,
    aten.relu.default: _relu,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.pow.Tensor_Scalar: _power,
    aten.square.default: _of_integers(lambda x: x * x),
    aten.isnan.default: _of_integers(lambda x: torch.zeros_like(x, dtype=torch.bool)),
    aten.prod.default: _product_of_all,
    aten.prod.dim_int: _product_of_integers,
    aten.nansum.default: _sum_of_integers,
    **dict.fromkeys(
        (aten.round.default, aten.floor.default, aten.ceil.default, aten.trunc.default),
        _of_integers(torch.clone),
    ),
}
