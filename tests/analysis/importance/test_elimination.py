"""Greedy elimination against least squares done the long way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nncompress.analysis.importance import elimination
from nncompress.analysis.importance.elimination import Quadratic, eliminate, refit


def problem(seed: int, units: int = 6, per_unit: int = 3, outputs: int = 5) -> tuple[Quadratic, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = units * per_unit
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(4000, columns, generator=generator, dtype=torch.float64) @ mixed
    x -= x.mean(0)
    weight = torch.randn(outputs, columns, generator=generator, dtype=torch.float64)
    owned = np.random.default_rng(seed).permutation(columns).reshape(units, per_unit)
    return Quadratic(weight, x.T @ x / len(x), torch.eye(outputs, dtype=torch.float64), owned), x


def error_without(q: Quadratic, x: torch.Tensor, gone: list[int]) -> float:
    kept = np.setdiff1d(np.arange(x.shape[1]), q.columns[gone].ravel())
    target = x @ q.weight.T
    solution = torch.linalg.lstsq(x[:, kept], target, driver="gelsd").solution
    return float((target - x[:, kept] @ solution).square().sum(1).mean())


@pytest.mark.parametrize(("seed", "outputs"), [(0, 5), (1, 5), (2, 5), (3, 40)])
def test_each_step_is_the_best_one_and_its_error_is_that_of_least_squares(seed, outputs):
    q, x = problem(seed, outputs=outputs)
    order, errors = eliminate([q], 6)
    gone: list[int] = []
    for unit, error in zip(order, errors[1:]):
        others = {u: error_without(q, x, [*gone, u]) for u in range(6) if u not in gone}
        assert min(others, key=others.__getitem__) == unit
        gone.append(unit)
        # The ridge and the lifted metric are 1e-4 and 1e-3 of the mean.
        assert error == pytest.approx(others[unit], rel=0.02)


@pytest.mark.parametrize(("outputs", "rows"), [(5, 5), (18, 18), (40, 18)])
def test_no_more_rows_of_a_weight_are_kept_than_it_has_columns(outputs, rows):
    q, _ = problem(4, outputs=outputs)
    assert len(elimination._Eliminator(q)._weight) == rows


def test_several_consumers_add_up():
    (a, x), (b, z) = problem(1), problem(2)
    b.columns = b.columns[::-1].copy()
    order, errors = eliminate([a, b], 6)
    assert errors[1] == pytest.approx(
        error_without(a, x, order[:1]) + error_without(b, z, order[:1]), rel=0.02
    )


def test_the_metric_weighs_outputs():
    q, _ = problem(4, outputs=2)
    q.second = torch.eye(18, dtype=torch.float64)
    q.weight.zero_()
    q.weight[0, q.columns[3]] = 1.0
    q.weight[1, q.columns[5]] = 0.5
    q.metric = torch.diag(torch.tensor([0.01, 1.0], dtype=torch.float64))
    order, _ = eliminate([q], 6)
    assert 3 in order
    assert 5 not in order


def test_refit_is_least_squares_on_the_kept_columns():
    q, x = problem(5)
    kept = q.columns[[0, 2, 3]].ravel()
    want = torch.linalg.lstsq(x[:, kept], x @ q.weight.T, driver="gelsd").solution.T
    got = refit(q.weight, q.second, kept)
    torch.testing.assert_close(got[:, kept], want, rtol=0.02, atol=0.02)
    assert got[:, np.setdiff1d(np.arange(18), kept)].abs().max() == 0


@pytest.mark.parametrize("spare", [0, 7])
def test_steps_may_wait(monkeypatch, spare):
    q, _ = problem(6, units=20, per_unit=3)
    columns = 60 + spare  # the last belong to no unit
    mixed = torch.randn(200, columns, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    q.second, q.weight = mixed.T @ mixed / 200, torch.randn(5, columns, dtype=torch.float64)
    want = eliminate([q], 20)
    monkeypatch.setattr(elimination, "PENDING", 7)
    order, errors = eliminate([q], 20)
    assert order == want[0]
    assert errors == pytest.approx(want[1], rel=1e-9)


def test_units_taken_as_independent_cost_what_they_carry():
    q, _ = problem(8)
    blocks = q.second[q.columns[:, :, None], q.columns[:, None, :]]
    alone = torch.zeros_like(q.second)
    alone[q.columns[:, :, None], q.columns[:, None, :]] = blocks
    q.second = alone
    want = eliminate([q], 6)  # nothing to compensate with
    q.second = blocks
    order, errors = eliminate([q], 6)
    assert order == want[0]
    assert errors == pytest.approx(want[1], rel=1e-9)
    parts = [torch.einsum("ok,kl,ol->", q.weight[:, c], s, q.weight[:, c]) for c, s in zip(q.columns, blocks)]
    assert errors[1] == pytest.approx(float(min(parts)), rel=0.002)  # the ridge and the lift of the metric
