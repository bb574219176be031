"""Ridges against least squares done sample by sample, and against the population that samples come from."""

from __future__ import annotations

import math

import pytest
import torch
from networks import inputs, model

from nncompress.analysis.observe import budget
from nncompress.analysis.observe.moments import (
    RIDGES,
    InputMoments,
    Moments,
    cholesky,
    downhill,
    held_out_ridge,
    solve_towards,
    solved,
    with_ridge,
)
from nncompress.analysis.observe.shelf import OF_ROWS, Shelf, Slot
from nncompress.ir.layers.weights import layers


@pytest.fixture
def samples():
    """x [n, 30] of a few causes and some noise, and the population's moment."""
    mixing = torch.randn(30, 8, dtype=torch.float64)
    population = mixing @ mixing.T + 3 * torch.eye(30, dtype=torch.float64)
    root = torch.linalg.cholesky(population)

    def draw(count):
        return torch.randn(count, 30, dtype=torch.float64) @ root.T

    return draw, population


def moment(x):
    return x.T @ x / len(x)


def seen(*groups):
    """Moments of samples [n, d] of each group, which come a few at a time."""
    moments = Moments()
    for rows in torch.stack(groups).split(7, 1):
        moments.add(rows)
    return moments


def error_of(fitted, held, ridge):
    """Of every input the error of its regression on the others, with that ridge: summed mean squares."""
    lift = ridge * moment(fitted).diagonal().mean()
    total = 0.0
    for j in range(fitted.shape[1]):
        others = [k for k in range(fitted.shape[1]) if k != j]
        rows = (len(fitted) * lift).sqrt() * torch.eye(len(others), dtype=torch.float64)
        a = torch.cat([fitted[:, others], rows])
        b = torch.cat([fitted[:, j], torch.zeros(len(others), dtype=torch.float64)])
        coefficients = torch.linalg.lstsq(a, b).solution
        total += float((held[:, others] @ coefficients - held[:, j]).square().mean())
    return total


def test_the_ridge_is_the_first_with_the_least_held_out_error(samples):
    draw, _ = samples
    for count in (12, 40, 400):
        fitted, held = draw(count), draw(100)
        errors = [error_of(fitted, held, ridge) for ridge in RIDGES]
        first = next(i for i, (a, b) in enumerate(zip(errors, [*errors[1:], float("inf")])) if a <= b)
        assert held_out_ridge(seen(fitted), seen(held)) == RIDGES[first]


def test_few_samples_ask_for_more_than_many(samples):
    draw, population = samples
    few, many = draw(10), draw(5000)
    others = seen(torch.linalg.cholesky(population).T)
    weak, strong = (held_out_ridge(seen(x), others) for x in (many, few))
    assert weak < strong
    errors = {}
    for ridge in (weak, strong):
        inverse = torch.linalg.inv(with_ridge(moment(few), ridge))
        errors[ridge] = float(((inverse @ population @ inverse).diagonal() / inverse.diagonal() ** 2).sum())
    assert errors[strong] < 0.95 * errors[weak]


def test_groups_share_a_ridge_and_only_some_inputs_of_many_are_looked_at(samples, monkeypatch):
    draw, _ = samples
    fitted, held = draw(50), draw(50)
    both = seen(fitted, fitted), seen(held, held)
    assert held_out_ridge(*both) == held_out_ridge(seen(fitted), seen(held))
    monkeypatch.setattr("nncompress.analysis.observe.moments.TOLD", 10)
    assert held_out_ridge(*both) in RIDGES


@pytest.mark.parametrize("usual", RIDGES)
@pytest.mark.parametrize("least", RIDGES)
def test_a_ridge_near_a_usual_one_is_found_in_few_tries(least, usual):
    tried = []

    def error(ridge):
        tried.append(ridge)
        return abs(math.log(ridge / least))

    assert downhill(error, usual) == least
    assert len(tried) == len(set(tried)) <= abs(RIDGES.index(usual) - RIDGES.index(least)) + 3


def test_inputs_that_are_all_zero_ask_for_no_ridge_in_particular():
    nothing = seen(torch.zeros(3, 4).double())
    assert held_out_ridge(nothing, nothing) in RIDGES


@pytest.mark.parametrize("count", [3, 40, 500])
def test_moments_are_those_of_all_rows_however_they_come_and_join(count):
    rows, others = torch.randn(2, count, 30, dtype=torch.float64), torch.randn(2, 9, 30, dtype=torch.float64)
    columns = torch.randn(2, 30, 4, dtype=torch.float64)
    moments, second = seen(*rows), seen(*others)
    torch.testing.assert_close(moments.times(columns), rows.mT @ rows @ columns)
    torch.testing.assert_close(moments.second, rows.mT @ rows / count)
    moments.join(second)
    together = torch.cat([rows, others], 1)
    torch.testing.assert_close(moments.products, together.mT @ together)
    torch.testing.assert_close(moments.mean, together.mean(1))
    assert moments.count == count + 9


@pytest.mark.parametrize("count", [0, 5, 90])
@pytest.mark.parametrize("ridge", [1e-4, 1.0])
def test_columns_of_the_inverse_are_the_same_of_few_rows_and_of_many(count, ridge):
    rows = torch.randn(2, count, 40, dtype=torch.float64) * torch.rand(40).double()
    moments, inputs = seen(*rows), torch.tensor([0, 7, 39])
    inverse = torch.linalg.inv(with_ridge(rows.mT @ rows, ridge))
    torch.testing.assert_close(moments.inverse(ridge, inputs), inverse[..., inputs], rtol=1e-7, atol=1e-9)


def test_a_factor_takes_the_place_of_its_moment():
    moment = seen(*torch.randn(2, 50, 8).double()).products
    wanted = torch.linalg.cholesky(moment)
    lower = cholesky(moment)
    torch.testing.assert_close(lower, wanted)
    assert lower.data_ptr() == moment.data_ptr()


def test_least_squares_towards_a_start(samples):
    draw, _ = samples
    x, wanted, start = draw(20), torch.randn(20, 5).double(), torch.randn(5, 30).double()
    lift = 0.1 * moment(x).diagonal().mean()
    rows = (20 * lift).sqrt() * torch.eye(30, dtype=torch.float64)
    a, b = torch.cat([x, rows]), torch.cat([wanted, rows @ start.T])
    got = solve_towards(moment(x), wanted.T @ x / 20, start, 0.1)
    torch.testing.assert_close(got, torch.linalg.lstsq(a, b).solution.T)


def test_small_moments_stay_small_beside_others():
    moments = torch.stack([torch.eye(3), 1e-6 * torch.eye(3), torch.zeros(3, 3)]).double()
    alone, together = with_ridge(moments, 0.1), with_ridge(moments, 0.1, together=True)
    assert alone.diagonal(dim1=1, dim2=2)[:, 0].tolist() == pytest.approx([1.1, 1.1e-6, 1.0])
    assert together.diagonal(dim1=1, dim2=2)[:, 0].tolist() == pytest.approx(
        [1.0333, 0.0333, 0.0333], rel=1e-2
    )
    assert with_ridge(torch.zeros(3, 3), of_nothing=1e-9).trace() == pytest.approx(3e-9)


def test_moments_over_the_budget_are_in_a_file_to_the_same_bits(monkeypatch):
    each, batches = model("residual"), [inputs("residual", 4, seed=s) for s in range(3)]
    readers = {layer.name: [layer] for layer in layers(each)}
    whole = InputMoments(each, readers, batches, rows=20, seed=5)
    size = sum(whole[name].second.nbytes for name in readers)
    monkeypatch.setattr(budget, "BUDGET", size // 4)
    filed = InputMoments(each, readers, batches, rows=20, seed=5)
    assert whole.in_memory
    assert not filed.in_memory
    assert whole.passes == filed.passes == 1
    again = {name: filed[name].second for name in readers}
    for name in reversed(readers):
        assert torch.equal(again[name], whole[name].second)
        assert torch.equal(filed[name].second, whole[name].second)
        assert filed[name].count == whole[name].count


def test_moments_that_files_have_no_room_for_are_gathered_again_to_the_same_bits(monkeypatch):
    each, batches = model("residual"), [inputs("residual", 4, seed=s) for s in range(3)]
    readers = {layer.name: [layer] for layer in layers(each)}
    whole = InputMoments(each, readers, batches, rows=20, seed=5)
    monkeypatch.setattr(budget, "BUDGET", 1)
    monkeypatch.setattr("nncompress.analysis.observe.shelf._files_take", lambda size: False)
    parts = InputMoments(each, readers, batches, rows=20, seed=5)
    assert whole.passes == 1
    assert parts.passes == len(readers)
    names = list(readers)
    wanted = {name: whole[name].second for name in names}
    with torch.no_grad():
        each.tensor(next(layers(each)).weight.name).zero_()  # which is what passes do meanwhile
    for name in (*names, names[0]):
        assert torch.equal(parts[name].second, wanted[name])
        assert len(parts._held) == 1
    assert "another" not in parts
    with pytest.raises(KeyError):
        parts["another"]
    assert {row.count for row in parts.rows.values()} == {60, 12}


def test_solved_by_half_of_the_operations_or_where_rounding_left_it_indefinite(samples):
    _, population = samples
    columns = torch.randn(30, 5, dtype=torch.float64)
    for moment in (population, population - 4 * torch.eye(30, dtype=torch.float64)):
        assert torch.allclose(moment @ solved(moment, columns), columns, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_wait_take_their_part_of_the_memory_of_the_moments_at_most(dtype):
    moments, held = Moments(), []
    for _ in range(40):
        moments.add(torch.randn(2, 3, 64, dtype=dtype))
        held.append(sum(each.nbytes for each in moments._rows))
    assert 0 < max(held) <= 2 * 64 * 64 * 8 / OF_ROWS


def test_a_moment_that_is_read_from_a_file_is_not_copied_once_more(monkeypatch):
    monkeypatch.setattr(budget, "BUDGET", 0)
    filed, read = Moments(Slot(Shelf())), []
    filed.add(torch.randn(2, 90, 8))
    before = filed.products
    plain = Shelf._read
    monkeypatch.setattr(Shelf, "_read", lambda *args: read.append(plain(*args)) or read[-1])
    second = filed.second
    assert second.data_ptr() in {each.data_ptr() for each in read}
    assert torch.equal(second, before / 90)
    assert torch.equal(filed.second, second)
    held = seen(*torch.randn(2, 90, 8).double())
    assert torch.equal(held.second, held.second)
    assert torch.equal(held.products / 90, held.second)
