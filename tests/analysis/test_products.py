"""Products of rows against those of all of them at once, in float64."""

from __future__ import annotations

import pytest
import torch

from nncompress.analysis.observe.moments import Moments
from nncompress.analysis.products import add_products, add_products_about_mean

FLOAT32 = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("width", [3, 256, 700])
def test_products_by_blocks_are_those_of_all_columns(width):
    rows = torch.randn(2, 40, width)
    total = torch.randn(2, width, width, dtype=torch.float64)
    expected = total + rows.double().mT @ rows.double()
    add_products(total, rows.double())
    assert torch.allclose(total, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "means", "sizes"),
    [
        (torch.float32, 0, 1),
        (torch.float32, 30, 1),
        (torch.float32, 3e3, 1),
        (torch.float32, 3, [1e-30, 1e-6, 1, 1e9, 1e25]),
        (torch.float32, 0, [1e-25, 1e-22, 1e-3, 1, 3e20]),
        (torch.float32, 1, 0.0),
        (torch.bfloat16, 3, 1),
        (torch.float64, 3e4, [1e-30, 1e-6, 1, 1e9, 1e25]),
    ],
)
def test_covariances_are_off_by_float32_of_the_spread_whatever_means_and_sizes_are(dtype, means, sizes):
    sizes = torch.tensor(sizes).double().expand(5)[:, None].expand(5, 60).reshape(300)
    spread = torch.randn(1, 4000, 300) @ torch.randn(300, 300) / 17  # of variance 1, the columns alike
    rows = ((spread.double() + means * torch.randn(300)) * sizes).to(dtype)
    moments = Moments()
    for part in rows.split(700, 1):
        moments.add(part)
    exact = rows[0].double()
    about = exact - exact.mean(0)
    for found, vectors in ((moments.covariance, about), (moments.second, exact)):
        apart = (found[0] - vectors.T @ vectors / 4000).abs()
        spread, whole = (each.square().mean(0).sqrt() for each in (about, exact))
        rounding = 20 * FLOAT32 * spread[:, None] * spread + 1e-13 * whole[:, None] * whole
        assert bool((apart <= rounding).all())


def test_products_of_float32_are_not_made_in_float64():
    rows, made = torch.randn(1, 500, 40), []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__name__", "") in ("matmul", "__matmul__"):
                made.append(args[0].dtype)
            return function(*args, **(kwargs or {}))

    with Seen():
        moments = Moments()
        moments.add(rows)
        moments.products  # noqa: B018
    assert made == [torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_rows_add_nothing(dtype):
    total = torch.randn(2, 5, 5, dtype=torch.float64)
    expected = total.clone()
    add_products_about_mean(total, torch.zeros(2, 0, 5, dtype=dtype), torch.zeros(2, 5, dtype=torch.float64))
    assert torch.equal(total, expected)
