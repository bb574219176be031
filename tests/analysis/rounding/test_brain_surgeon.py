"""Against the same steps with an inverse per column, and against the error that it is there to lower."""

import numpy as np
import pytest
import torch

from nncompress.analysis.observe.moments import with_ridge
from nncompress.analysis.rounding import sparsegpt
from nncompress.analysis.rounding.sparsegpt import pruned


def correlated(d: int, seed: int) -> torch.Tensor:
    """E[x xᵀ] of inputs that a few hidden causes share, as neighbouring pixels and channels do."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * d, d, generator=generator, dtype=torch.float64)
    x = x / torch.arange(1, d + 1) @ torch.randn(d, d, generator=generator, dtype=torch.float64) + 1
    return with_ridge(x.T @ x / len(x), 0.01)


def by_inverses(row: np.ndarray, second: np.ndarray, n: int, m: int) -> np.ndarray:
    """What is right of a column is at its optimum, given what was fixed left of it."""
    h = second
    start, w = row.copy(), row.copy()

    def settle(first: int) -> None:
        free, fixed = slice(first, None), slice(None, first)
        w[free] = start[free] - np.linalg.solve(h[free, free], h[free, fixed] @ (w - start)[fixed])

    for first in range(0, len(row), m):
        settle(first)
        cost = [w[k] ** 2 / np.linalg.inv(h[k:, k:])[0, 0] for k in range(first, first + m)]
        going = first + np.argsort(cost)[: m - n]
        for k in range(first, first + m):
            settle(k)
            if k in going:
                w[k] = 0
    return w


@pytest.mark.parametrize("block", [6, 128])  # in several blocks and in one
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
def test_each_weight_is_at_its_optimum_when_its_turn_comes(n, m, block, monkeypatch):
    monkeypatch.setattr(sparsegpt, "BLOCK", block)
    seed = 10 * n + m
    second = correlated(16, seed)
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = pruned(weight, second, n, m)
    expected = np.stack([by_inverses(row.numpy().copy(), second.numpy(), n, m) for row in weight])
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)
    assert ((got.reshape(5, -1, m) != 0).sum(-1) == n).all()


def error(weight: torch.Tensor, other: torch.Tensor, second: torch.Tensor) -> float:
    """E[|(w − w') x|²]."""
    apart = (weight - other).double()
    return float(((apart @ second) * apart).sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_output_errs_less_than_without_compensation(seed):
    second = correlated(32, seed)
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))
    groups = weight.reshape(8, -1, 4)
    smallest = groups.abs().topk(2, -1, largest=False).indices
    magnitude = groups.scatter(-1, smallest, 0.0).reshape(8, 32)
    got = pruned(weight, second, 2, 4)
    assert error(weight, got, second) < 0.5 * error(weight, magnitude, second)


def test_zeros_stay_and_a_pattern_that_is_there_is_left_alone():
    second = correlated(16, 0)
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    weight[:, ::3] = 0
    once = pruned(weight, second, 2, 4)
    assert (once[:, ::3] == 0).all()
    assert torch.equal(pruned(once, second, 2, 4), once)


def test_inputs_that_never_come_do_no_harm():
    second = correlated(8, 0)
    second[:, 5] = second[5] = 0
    got = pruned(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), with_ridge(second), 2, 4)
    assert got.isfinite().all()
    assert pruned(torch.ones(3, 8), with_ridge(torch.zeros(8, 8, dtype=torch.float64)), 2, 4).isfinite().all()
