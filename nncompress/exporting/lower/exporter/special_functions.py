"""Functions that torch's ONNX exporter says in others which lose digits, or overflow, said without that loss.

It writes log1p(x) as log(1 + x), of which nothing is left below 6e-8; expm1, erfc and the functions of the
normal distribution lose as much by a difference from 1; sums of exponentials are said with these, which
overflow or vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from math import inf, log, nan, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten

# of erfc, in 1 / (1 + x/2): Press et al. 1992, Numerical Recipes 6.2; right to 1.2e-7 of the value everywhere
_ERFC = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807),
    *(-1.13520398, 1.48851587, -0.82215223, 0.17087277),
)


# of erfinv(x) / x, in w - 2.5 and √w - 3 for w = -log(1 - x²) below and above 5; Giles 2010, Approximating
# the erfinv function: right to 3e-7 of the value
_ERFINV_NEAR = (
    *(1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087),
    *(-4.39150654e-06, -3.5233877e-06, 3.43273939e-07, 2.81022636e-08),
)
_ERFINV_FAR = (
    *(2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773),
    *(-0.00367342844, 0.00134934322, 0.000100950558, -0.000200214257),
)
# of the Bessel function I0(x) in (x / 3.75)², and of √x exp(-x) I0(x) in 3.75 / x beyond 3.75; Abramowitz and
# Stegun 9.8.1 and 9.8.2: right to 6e-7 of the value
_I0_NEAR = (1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813)
_I0_FAR = (
    *(0.39894228, 0.01328592, 0.00225319, -0.00157565, 0.00916281),
    *(-0.02057706, 0.02635537, -0.01647633, 0.00392377),
)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The first is of x⁰."""
    result = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        result = result * x + coefficient
    return result


def _in_floats(steps: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Of whole numbers, too, as torch has it."""

    @wraps(steps)
    def converted(x: Tensor) -> Tensor:
        return steps(x if x.is_floating_point() else x.to(torch.get_default_dtype()))

    return converted


@_in_floats
def log1p(x: Tensor) -> Tensor:
    """What 1 + x rounds away, log(1 + x) lacks in the same proportion (Kahan)."""
    above = 1 + x
    rounded = above - 1
    ratio = torch.where(rounded == x, 1.0, x / rounded)  # of infinities, too
    return torch.where(rounded == 0, x, torch.log(above) * ratio)


@_in_floats
def _expm1(x: Tensor) -> Tensor:
    near = x.clamp(-0.5, 0.5)
    grown = near.exp()
    kept = torch.where(grown == 1, 1.0, (grown - 1) / torch.where(grown == 1, 1.0, torch.log(grown)))
    return torch.where(x == near, x * kept, x.exp() - 1)


def _log_erfcx(x: Tensor) -> Tensor:
    """log(exp(x²) erfc(x)) for x >= 0."""
    t = 1 / (1 + 0.5 * x)
    return torch.log(t) + _polynomial(t, _ERFC)


@_in_floats
def _erfc(x: Tensor) -> Tensor:
    away = x.clamp_min(4.0 if x.dtype == torch.float64 else 0.5)  # before, 1 - erf(x) is no worse
    return torch.where(x == away, torch.exp(_log_erfcx(away) - away * away), 1 - torch.erf(x))


@_in_floats
def _erfcx(x: Tensor) -> Tensor:
    scaled = torch.exp(_log_erfcx(x.abs()))
    return torch.where(x < 0, 2 * torch.exp(x * x) - scaled, scaled)


@_in_floats
def _log_ndtr(x: Tensor) -> Tensor:
    below = x.clamp_max(-1)
    tail = _log_erfcx(below * -sqrt(0.5)) - 0.5 * below * below - log(2)
    return torch.where(x == below, tail, log1p(-0.5 * _erfc(x * sqrt(0.5))))


def _remainder(x: Tensor | float, by: Tensor | float) -> Tensor:
    """With the sign of the divisor, of the exact rest: no quotient is rounded."""
    if not all(each.is_floating_point() for each in (x, by) if isinstance(each, Tensor)):
        raise NotImplementedError  # of whole numbers the exporter's own words are right
    rest = torch.fmod(x if isinstance(x, Tensor) else torch.full_like(by, x), by)  # type: ignore[arg-type]
    return torch.where((rest != 0) & ((rest < 0) != (by < 0)), rest + by, rest)


@_in_floats
def _erfinv(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise NotImplementedError  # of which it has fewer digits
    inside = x.clamp(-1 + 2**-24, 1 - 2**-24)
    w = -torch.log((1 - inside) * (1 + inside))
    near, far = _polynomial(w - 2.5, _ERFINV_NEAR), _polynomial(torch.sqrt(w) - 3, _ERFINV_FAR)
    found = torch.where(w < 5, near, far) * x
    return torch.where(x.abs() < 1, found, torch.where(x.abs() == 1, x * inf, nan))


@_in_floats
def _scaled_i0(x: Tensor) -> Tensor:
    """exp(-|x|) I0(x)."""
    if x.dtype != torch.float32:
        raise NotImplementedError
    size = x.abs()
    near, far = size.clamp_max(3.75), size.clamp_min(3.75)
    of_small = _polynomial((near / 3.75) ** 2, _I0_NEAR) * torch.exp(-near)
    return torch.where(size < 3.75, of_small, _polynomial(3.75 / far, _I0_FAR) / torch.sqrt(far))


@_in_floats
def _i0(x: Tensor) -> Tensor:
    half = torch.exp(0.5 * x.abs())  # of which the square overflows before the result does
    return _scaled_i0(x) * half * half


def _log_sigmoid(x: Tensor) -> Tensor:
    return -F.softplus(-x)


def _log_add_exp(a: Tensor, b: Tensor, base: float = 1.0) -> Tensor:
    """Of equal infinities, too."""
    apart = torch.where(a == b, torch.zeros_like(a - b), (a - b).abs())
    return torch.maximum(a, b) + F.softplus(-apart * base) / base


def _log_add_exp2(a: Tensor, b: Tensor) -> Tensor:
    return _log_add_exp(a, b, log(2))


def _log_cum_sum_exp(x: Tensor, dim: int) -> Tensor:
    """In steps of 1, 2, 4, … (Hillis & Steele 1986)."""
    size, shift = x.shape[dim], 1
    if not isinstance(size, int):
        raise NotImplementedError
    while shift < size:
        before = torch.full_like(x.narrow(dim, 0, shift), -inf)
        x = _log_add_exp(x, torch.cat([before, x.narrow(dim, 0, size - shift)], dim))
        shift *= 2
    return x


SPECIAL_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    aten.log1p.default: log1p,
    aten.expm1.default: _expm1,
    aten.erfc.default: _erfc,
    aten.erfinv.default: _erfinv,
    aten.i0.default: _i0,
    aten.special_i0e.default: _scaled_i0,
    aten.special_erfcx.default: _erfcx,
    aten.special_log_ndtr.default: _log_ndtr,
    aten.remainder.Tensor: _remainder,
    aten.remainder.Scalar: _remainder,
    aten.remainder.Scalar_Tensor: _remainder,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.logaddexp.default: _log_add_exp,
    aten.logaddexp2.default: _log_add_exp2,
    aten.logcumsumexp.default: _log_cum_sum_exp,
}
