"""Functions that torch's ONNX exporter says in others which lose digits, or overflow, said without that loss.

It writes log1p(x) as log(1 + x), of which nothing is left below 6e-8; expm1, erfc and the functions of the
normal distribution lose as much by a difference from 1; sums of exponentials are said with these, which
overflow or vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import inf, log, sqrt
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


def _of_floats(steps: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of whole numbers the exporter's own words are right."""

    @wraps(steps)
    def checked(*given: Any) -> Tensor:
        if not all(x.is_floating_point() for x in given if isinstance(x, Tensor)):
            raise NotImplementedError
        return steps(*given)

    return checked


@_of_floats
def log1p(x: Tensor) -> Tensor:
    """What 1 + x rounds away, log(1 + x) lacks in the same proportion (Kahan)."""
    above = 1 + x
    rounded = above - 1
    ratio = torch.where(rounded == x, 1.0, x / rounded)  # of infinities, too
    return torch.where(rounded == 0, x, torch.log(above) * ratio)


@_of_floats
def _expm1(x: Tensor) -> Tensor:
    near = x.clamp(-0.5, 0.5)
    grown = near.exp()
    kept = torch.where(grown == 1, 1.0, (grown - 1) / torch.where(grown == 1, 1.0, torch.log(grown)))
    return torch.where(x == near, x * kept, x.exp() - 1)


def _log_erfcx(x: Tensor) -> Tensor:
    """log(exp(x²) erfc(x)) for x >= 0."""
    t = 1 / (1 + 0.5 * x)
    polynomial = torch.zeros_like(t)
    for coefficient in reversed(_ERFC):
        polynomial = polynomial * t + coefficient
    return torch.log(t) + polynomial


@_of_floats
def _erfc(x: Tensor) -> Tensor:
    away = x.clamp_min(4.0 if x.dtype == torch.float64 else 0.5)  # before, 1 - erf(x) is no worse
    return torch.where(x == away, torch.exp(_log_erfcx(away) - away * away), 1 - torch.erf(x))


@_of_floats
def _erfcx(x: Tensor) -> Tensor:
    scaled = torch.exp(_log_erfcx(x.abs()))
    return torch.where(x < 0, 2 * torch.exp(x * x) - scaled, scaled)


@_of_floats
def _log_ndtr(x: Tensor) -> Tensor:
    below = x.clamp_max(-1)
    tail = _log_erfcx(below * -sqrt(0.5)) - 0.5 * below * below - log(2)
    return torch.where(x == below, tail, log1p(-0.5 * _erfc(x * sqrt(0.5))))


@_of_floats
def _remainder(x: Tensor | float, by: Tensor | float) -> Tensor:
    """With the sign of the divisor, of the exact rest: no quotient is rounded."""
    rest = torch.fmod(x if isinstance(x, Tensor) else torch.full_like(by, x), by)  # type: ignore[arg-type]
    return torch.where((rest != 0) & ((rest < 0) != (by < 0)), rest + by, rest)


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
