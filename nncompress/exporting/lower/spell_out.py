"""Ops that a format has no word for, said in ops that it has; once an export has failed without.

| op                   | becomes                                                          |
|----------------------|------------------------------------------------------------------|
| hypot                | a · √(1 + (b / a)²), a being the longer side                     |
| cumprod              | products with itself shifted by 1, 2, 4, … (Hillis & Steele 1986) |
| cummax, cummin       | the same of maxima, and of the places where x is what they are    |
| median, nanmedian,   | sorted, and taken                                                |
| kthvalue             |                                                                  |
| adaptive max pools   | the maxima of their windows, where nobody asks for the places    |
| fmax, fmin           | the greater, or the one that is a number                         |
| copysign             | one of two magnitudes                                            |
| inv                  | of matrices up to 3 × 3: cofactors over their determinant        |
| scatter with reduce, | what they add or multiply, by `scatter_reduce`                    |
| index_reduce         |                                                                  |
| cdist, p other than 2 | norms of differences                                             |
| sort, argsort(stable=True) | sort                                                       |
| searchsorted, bucketize | how many bounds are smaller                                      |
| isin                 | comparisons with each                                            |
| diagonal_scatter     | rows, each with one value written                                |
| gcd, lcm             | the steps of Euclid's algorithm                                   |
| lgamma, digamma      | Stirling's series                                                 |
| mode                 | sorted, and taken where most are equal; unless the place is asked for |
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from nncompress.errors import UnsupportedError
from nncompress.exporting.lower.rare_functions import digamma, gcd, lcm, lgamma
from nncompress.exporting.lower.scalars import give_a_dim, say_what_nothing_gives
from nncompress.ir import Model
from nncompress.ir.edit.computed import store_constants
from nncompress.ir.graph.normal_form.decompose import take_apart
from nncompress.ir.graph.places import first_call, first_place

aten = torch.ops.aten
Written = TypeVar("Written")


class Unspeakable(UnsupportedError):
    """A format has no word for an op.

    Args:
        op: its name, as `first_place` takes it; "" where the exporter does not tell.
    """

    def __init__(self, what: str, *, op: str, got: str, remedy: str) -> None:
        super().__init__(what, got=got, remedy=remedy)
        self.op = op


def in_other_words(model: Model, write: Callable[[Model], Written]) -> tuple[Model, Written]:
    """What `write` makes of the model or, where it refuses that, of one that says the same in other words,
    with constants computed; and which of the two it was.

    Raises:
        UnsupportedError: the last refusal, which names what no other words help; where that is none of the
            model's own ops, the first with the reason of the last.
    """
    try:
        return model, write(model)
    except UnsupportedError as first:
        other = model.copy()
        stored, spelled = store_constants(other), spell_out(other)
        if not stored and not spelled:
            raise
        other.refresh()
        try:
            return other, write(other)
        except Unspeakable as last:
            if last.op and first_call(model.graph, last.op) is not None:
                here, there = (first_place(each.graph, last.op) for each in (model, other))
                last.what = last.what.replace(there, here)  # behind the layer that the user knows
                raise
            first.got = f"{first.got}; and said in other ops: {last.got}"
            raise first from last


def spell_out(model: Model) -> bool:
    """Do it, in place; False if there was nothing."""
    changed = False
    for node in list(model.graph.nodes):
        steps = STEPS.get(node.target)
        if steps is None or (node.target in _WITH_PLACES and _places_are_read(node)):
            continue
        if say_what_nothing_gives(node):
            changed = True
            continue
        give_a_dim(node)
        changed |= take_apart(model.graph, node, steps)
    if changed:
        model.refresh()
    return changed


def _places_are_read(node: fx.Node) -> bool:
    return any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users)


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    """In proportion to the longer side: squares overflow and vanish."""
    a, b = a.abs(), b.abs()
    long, short = torch.maximum(a, b), torch.minimum(a, b)
    ratio = torch.where(long == short, (long > 0).to(long.dtype), short / long)
    endless = (a == inf) | (b == inf)  # beside NaN, too
    return torch.where(endless, torch.full_like(long, inf), long * torch.sqrt(1 + ratio * ratio))


def _scan(x: Tensor, dim: int, join: Callable[[Tensor, Tensor], Tensor], neutral: float) -> Tensor:
    size, shift = x.shape[dim], 1
    while shift < size:
        before = torch.full_like(x.narrow(dim, 0, shift), neutral)
        x = join(x, torch.cat([before, x.narrow(dim, 0, size - shift)], dim))
        shift *= 2
    return x


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    kind = dtype or (x.dtype if x.is_floating_point() or x.is_complex() else torch.int64)
    return _scan(x.to(kind), dim, torch.mul, 1)


def _cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _so_far(x, dim, torch.maximum, largest=True)


def _cummin(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _so_far(x, dim, torch.minimum, largest=False)


def _so_far(
    x: Tensor, dim: int, join: Callable[[Tensor, Tensor], Tensor], *, largest: bool
) -> tuple[Tensor, Tensor]:
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    numbers = x.to(torch.int32) if x.dtype == torch.bool else x
    low, high = (-inf, inf) if x.is_floating_point() else _ends(numbers.dtype)
    values = _scan(numbers, dim, join, low if largest else high)
    return values.to(x.dtype), _last_place(_is(numbers, values), dim)


def _ends(dtype: torch.dtype) -> tuple[int, int]:
    room = torch.iinfo(dtype)
    return room.min, room.max


def _is(x: Tensor, values: Tensor) -> Tensor:
    """Of a number that is none, too: it stays the largest and the smallest of all that follow it."""
    return (x == values) | x.isnan() if x.is_floating_point() else x == values


def _last_place(found: Tensor, dim: int) -> Tensor:
    """Up to each place, the last one at which it was."""
    shape = [1] * found.dim()
    shape[dim] = -1
    place = torch.arange(found.shape[dim], device=found.device).view(shape)
    return _scan(torch.where(found, place, 0), dim, torch.maximum, 0)


def _extremes(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    if dim is None:
        return x.min(), x.max()
    return x.amin(dim, keepdim), x.amax(dim, keepdim)


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, ...]:
    taken = (each.narrow(dim, k - 1, 1) for each in torch.sort(x, dim))
    return tuple(each if keepdim else each.squeeze(dim) for each in taken)


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, ...]:
    value, place = _kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim=True)
    if x.is_floating_point():
        lost = x.isnan()
        some = lost.any(dim, keepdim=True)
        value = torch.where(some, torch.nan, value)
        place = torch.where(some, lost.to(torch.int32).argmax(dim, keepdim=True), place)
    return (value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim))


def _median_of_all(x: Tensor) -> Tensor:
    return _median(x.flatten(), 0)[0]


def _nanmedian_of_all(x: Tensor) -> Tensor:
    return _nanmedian(x.flatten(), 0)[0]


def _nanmedian(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, ...]:
    if not x.is_floating_point():
        return _median(x, dim, keepdim)
    count = (~x.isnan()).sum(dim, keepdim=True)
    place = torch.div((count - 1).clamp_min(0), 2, rounding_mode="floor")
    ordered = torch.sort(torch.where(x.isnan(), torch.inf, x), dim)  # no two runtimes sort NaN alike
    value, origin = (each.gather(dim, place) for each in ordered)
    value = torch.where(count > 0, value, torch.nan)
    return (value, origin) if keepdim else (value.squeeze(dim), origin.squeeze(dim))


def searchsorted(
    bounds: Tensor,
    x: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: Any = None,
    sorter: Any = None,
) -> Tensor:
    ordered = bounds if sorter is None else bounds.gather(-1, sorter)
    row = ordered[..., None, :] if x.dim() else ordered
    found = row > x[..., None] if right or side == "right" else row >= x[..., None]
    smaller = ~found  # NaN is larger than all
    return smaller.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _is_in(x: Tensor, among: Tensor | float, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    row = among.flatten() if isinstance(among, Tensor) else among
    found = torch.eq(x[..., None], row).any(-1)
    return ~found if invert else found


def _diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The rows that the diagonal crosses, each with its one value written."""
    laid = x.movedim((dim1, dim2), (-2, -1))
    first, count = max(-offset, 0), source.shape[-1]
    rows = laid.narrow(-2, first, count)
    place = torch.arange(count, device=x.device)[:, None] + (first + offset)
    columns = torch.arange(laid.shape[-1], device=x.device)
    rows = torch.where(columns == place, source[..., None], rows)
    after = first + count
    whole = [laid.narrow(-2, 0, first), rows, laid.narrow(-2, after, laid.shape[-2] - after)]
    return torch.cat(whole, -2).movedim((-2, -1), (dim1, dim2))


def _mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The least of those that are there most often."""
    laid = torch.sort(x, dim).values.movedim(dim, -1)
    often = (laid[..., None] == laid[..., None, :]).sum(-1)
    found = laid.gather(-1, often.argmax(-1, keepdim=True)).movedim(-1, dim)
    found = found if keepdim else found.squeeze(dim)
    return found, found


def _adaptive_max_pool(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    for dim, count in zip(range(-len(size), 0), size):
        full = x.shape[dim]
        windows = ((i * full // count, -(-(i + 1) * full // count)) for i in range(count))
        x = torch.cat([x.narrow(dim, a, b - a).amax(dim, keepdim=True) for a, b in windows], dim)
    return x, x


def _fmax(a: Tensor, b: Tensor) -> Tensor:
    if not (a.is_floating_point() or b.is_floating_point()):
        return torch.maximum(a, b)
    return torch.where(a.isnan(), b, torch.where(b.isnan(), a, torch.maximum(a, b)))


def _fmin(a: Tensor, b: Tensor) -> Tensor:
    if not (a.is_floating_point() or b.is_floating_point()):
        return torch.minimum(a, b)
    return torch.where(a.isnan(), b, torch.where(b.isnan(), a, torch.minimum(a, b)))


def _copysign(x: Tensor, sign: Tensor | float) -> Tensor:
    size = x.abs() if x.is_floating_point() else x.to(torch.get_default_dtype()).abs()
    if not isinstance(sign, Tensor):
        return size * math.copysign(1.0, sign)
    negative = (sign < 0) | ((sign == 0) & (1 / sign < 0))  # of a zero, too
    return torch.where(negative, -size, size)


def _sort(x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    return torch.sort(x, dim, descending)  # ONNX keeps the order of equal ones


def _inverse(x: Tensor) -> Tensor:
    size = x.shape[-1]
    if size > 3:
        raise NotImplementedError
    if size == 1:
        return 1 / x
    rows = x.unbind(-2)
    if size == 2:
        (a, b), (c, d) = (row.unbind(-1) for row in rows)
        columns = [torch.stack([d, -c], -1), torch.stack([-b, a], -1)]
    else:
        columns = [torch.linalg.cross(rows[i - 2], rows[i - 1]) for i in range(3)]
    adjugate = torch.stack(columns, -1)
    return adjugate / (rows[0] * adjugate[..., 0]).sum(-1)[..., None, None]


def _scatter(x: Tensor, dim: int, index: Tensor, source: Tensor | float, *, reduce: str) -> Tensor:
    given = source if isinstance(source, Tensor) else torch.full_like(index, source, dtype=x.dtype)
    return x.scatter_reduce(dim, index, given, {"add": "sum", "multiply": "prod"}[reduce])


def _index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    place = [1] * x.dim()
    place[dim] = -1
    spread = index.view(place).expand(source.shape)
    return x.scatter_reduce(dim, spread, source, reduce, include_self=include_self)


def _distances(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)


_WITH_PLACES = (
    aten.mode.default,
    *(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default),
)
STEPS: dict[Any, Callable[..., Any]] = {
    aten.hypot.default: _hypot,
    aten.scatter.reduce: _scatter,
    aten.scatter.value_reduce: _scatter,
    aten.index_reduce.default: _index_reduce,
    aten.cdist.default: _distances,
    aten.cumprod.default: _cumprod,
    aten.cummax.default: _cummax,
    aten.cummin.default: _cummin,
    aten.aminmax.default: _extremes,
    aten.kthvalue.default: _kthvalue,
    aten.median.dim: _median,
    aten.median.default: _median_of_all,
    aten.nanmedian.dim: _nanmedian,
    aten.nanmedian.default: _nanmedian_of_all,
    aten.gcd.default: gcd,
    aten.lcm.default: lcm,
    aten.lgamma.default: lgamma,
    aten.digamma.default: digamma,
    aten.searchsorted.Tensor: searchsorted,
    aten.bucketize.Tensor: lambda x, bounds, **how: searchsorted(bounds, x, **how),
    aten.isin.Tensor_Tensor: _is_in,
    aten.isin.Tensor_Scalar: _is_in,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.mode.default: _mode,
    aten.adaptive_max_pool1d.default: _adaptive_max_pool,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.adaptive_max_pool3d.default: _adaptive_max_pool,
    aten.fmax.default: _fmax,
    aten.fmin.default: _fmin,
    aten.copysign.Tensor: _copysign,
    aten.copysign.Scalar: _copysign,
    aten.sort.stable: _sort,
    aten.argsort.stable: lambda x, **how: _sort(x, **how)[1],
    aten.linalg_inv.default: _inverse,
    aten.inverse.default: _inverse,
}
