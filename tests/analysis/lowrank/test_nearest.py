"""The weight of low rank that is nearest in what the layer computes."""

import pytest
import torch

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.lowrank.nearest import nearest


def positive(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / (2 * size)


def test_one_matrix_is_reduced_rank_regression():
    """Izenman 1975: of the least-squares fit, the leading principal directions of the fitted values."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 3, 12)
    y = x @ torch.randn(12, 9, generator=generator, dtype=torch.float64)
    y += torch.randn(500, 9, generator=generator, dtype=torch.float64)
    least_squares = torch.linalg.lstsq(x, y).solution.T  # [9, 12]
    fitted = x @ least_squares.T
    directions = torch.linalg.svd(fitted, full_matrices=False)[2][:4]
    wanted = directions.T @ directions @ least_squares
    found = nearest("linear", (4,), least_squares, (), Metric(x.T @ x / 500, torch.eye(9).double()))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("form", "ranks"), [("channel", (3,)), ("spatial", (4,)), ("tucker", (3, 4))])
def test_no_small_step_of_the_weight_along_its_ranks_is_better(form, ranks):
    weight = torch.randn(6, 5 * 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    metric = Metric(positive(45, 2), positive(6, 3))
    found = nearest(form, ranks, weight, (3, 3), metric)
    least = metric.energy(weight - found)
    assert least < 0.9 * metric.energy(weight)
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):  # a channel turned, of the outputs or of the inputs, keeps the ranks of every form
        turn = torch.eye(6).double() + 1e-2 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
        assert metric.energy(weight - turn @ found) > least * (1 - 1e-3)


@pytest.mark.parametrize(
    ("form", "ranks"), [("channel", (9,)), ("spatial", (30,)), ("tucker", (9, 9)), ("linear", (9,))]
)
def test_more_ranks_than_there_are_change_nothing(form, ranks):
    kernel = () if form == "linear" else (3, 3)
    weight = torch.randn(6, 5 * 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = nearest(form, ranks, weight, kernel, Metric(positive(45, 2), positive(6, 3)))
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-6)
