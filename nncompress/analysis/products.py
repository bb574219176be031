"""Sums of outer products of vectors, which are most of what moments cost."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 192  # columns that are multiplied at a time
ROWS = 4096  # that float32 sums up
LEAST, MOST = 1e-15, 1e17  # sizes whose squares float32 sums up


def add_products(total: Tensor, rows: Tensor) -> None:
    """Add the sum of outer products of rows [groups, n, d] to a total [groups, d, d], in place: blocks below
    the diagonal, and mirrored, which takes little more than half of the multiplications."""
    for first in range(0, rows.shape[2], BLOCK):
        own = slice(first, first + BLOCK)
        product = rows[..., own].mT @ rows[..., : own.stop]
        total[..., own, : own.stop] += product
        total[..., :first, own] += product[..., :first].mT


def add_products_about_mean(total: Tensor, rows: Tensor, sums: Tensor) -> None:
    """As `add_products`; of floats of up to 32 bits in half of the time, for they are multiplied as such.

    They are less an origin o then, which is about their mean, and put together in float64:
    Σ x xᵀ = Σ (x − o)(x − o)ᵀ + u oᵀ + o uᵀ with u = Σ x − n o / 2. So a product is off by a rounding of
    float32 relative to how far its columns spread, and by one of float64 relative to their means.

    Args:
        total: float64.
        sums: Σ x, float64 [groups, d].
    """
    if rows.dtype == torch.float64 or not rows.is_floating_point() or not rows.shape[1]:
        add_products(total, rows.to(torch.float64))
        return
    origin = (sums / rows.shape[1]).to(torch.float32)
    for part in rows.split(ROWS, 1):
        apart = part.to(torch.float32) - origin[:, None]
        add_products(total, apart if _squares_fit(apart) else apart.to(torch.float64))
    origin = origin.to(torch.float64)
    beside = sums - rows.shape[1] / 2 * origin
    total.baddbmm_(torch.stack([beside, origin], 2), torch.stack([origin, beside], 1))


def _squares_fit(rows: Tensor) -> bool:
    """Float32 has room for the sums of squares of every column's largest values."""
    size = torch.maximum(rows.amax(1), -rows.amin(1))  # a norm takes several times as long
    return bool(((size == 0) | ((size > LEAST) & (size < MOST))).all())
