"""The regression against least squares done the long way; how strongly it holds on to the weights before."""

from __future__ import annotations

import pytest
import torch

from nncompress.analysis.compensation.regression import RIDGES, Regression


def solved(x: torch.Tensor, t: torch.Tensor, start: torch.Tensor, **options: float):
    regression = Regression(centred=True)
    for part in torch.arange(len(x)).split(17):
        regression.add(x[None, part], t[None, part], part)
    weight, offset = regression.solve(start[None], **options)
    assert offset is not None
    return weight[0], offset[0], regression


def errors(weight: torch.Tensor, offset: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> float:
    return float((x.double() @ weight.T + offset - t).square().mean() / t.var())


def problem(records: int, noise: float, seed: int):
    """Inputs of 64, a weight that has lost half of its columns, and what they are to give."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(records + 500, 64, generator=generator)
    truth = torch.randn(3, 64, generator=generator)
    t = x @ truth.T + noise * torch.randn(len(x), 3, generator=generator)
    start = truth + 0.3 * torch.randn(3, 64, generator=generator)
    return x[:records], t[:records], x[records:], t[records:], start


@pytest.mark.parametrize("records", [24, 48, 80])
def test_with_few_records_what_was_not_seen_gets_no_worse(records):
    x, t, unseen, wanted, start = problem(records, 3.0, records)
    before = errors(start.double(), torch.zeros(3), unseen, wanted)
    held, weak = (solved(x, t, start, **options) for options in ({}, {"ridge": 1e-3}))
    assert held[2].ridge is not None
    assert held[2].ridge > 1e-3
    assert errors(*weak[:2], unseen, wanted) > 1.2 * before  # what a fixed pull did
    assert errors(*held[:2], unseen, wanted) < 1.1 * before


@pytest.mark.parametrize("records", [1, 7])
def test_where_nothing_varies_the_weights_before_stay(records):
    """Far from zero: what varies is not what is lost in the rounding of large products."""
    x, t, *_, start = problem(1, 0.0, 3)
    x, t = (100 + each.repeat(records, 1) for each in (x, t))
    weight, offset, _ = solved(x, t, start)
    torch.testing.assert_close(weight, start.double(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x.double() @ weight.T + offset, t.double())


def test_small_differences_of_large_inputs_are_fitted():
    x, t, *_, start = problem(600, 0.0, 4)
    far = solved(1e4 + x, t, start)[0]
    torch.testing.assert_close(far, solved(x, t, start)[0], rtol=1e-2, atol=1e-2)


def test_with_many_records_the_weights_before_have_no_say():
    x, t, unseen, wanted, start = problem(4000, 0.0, 1)
    weight, offset, regression = solved(x, t, start)
    assert regression.ridge == RIDGES[0]
    assert errors(weight, offset, unseen, wanted) < 1e-7


def test_records_held_out_are_fitted_to_in_the_end():
    x, t, *_, start = problem(300, 1.0, 2)
    weight, offset, _ = solved(x, t, start, ridge=1e-12)
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    expected = torch.linalg.lstsq(design, t.double()).solution.T
    torch.testing.assert_close(weight, expected[:, :-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(offset, expected[:, -1], rtol=1e-3, atol=1e-4)


def test_the_same_records_can_have_other_targets():
    x, t, *_, start = problem(300, 1.0, 5)
    _, _, regression = solved(x, t, start)
    other = 3 - t.abs()
    regression.aim((x[None, part], other[None, part]) for part in torch.arange(300).split(40))
    weight, offset = regression.solve(start[None].double(), ridge=1e-2)
    expected = solved(x, other, start, ridge=1e-2)
    assert offset is not None
    torch.testing.assert_close((weight[0], offset[0]), expected[:2], rtol=1e-4, atol=1e-5)
