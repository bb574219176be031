import itertools

import torch

from nncompress.analysis.rounding.gptq import round_compensated


def error(delta, moment):
    return float((delta @ moment * delta).sum())


def problem(outputs, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    matrix = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return matrix, mixing @ mixing.T / inputs + 0.01 * torch.eye(inputs, dtype=torch.float64)


def halves(values, at):
    return (values * 2).round() / 2


def test_between_nearest_rounding_and_the_best_there_is():
    """Every combination of rounding up and down, for few weights."""
    ours = nearest = best = 0.0
    for seed in range(8):
        matrix, moment = problem(1, 8, seed)
        grid = torch.stack([(matrix[0] * 2).floor() / 2, (matrix[0] * 2).ceil() / 2])
        choices = torch.tensor(list(itertools.product((0, 1), repeat=8)))
        every = grid[choices, torch.arange(8)] - matrix
        best += float(((every @ moment) * every).sum(1).min())
        nearest += error(halves(matrix, None) - matrix, moment)
        ours += error(round_compensated(matrix, moment, halves) - matrix, moment)
    assert ours < 0.7 * nearest
    assert best <= ours < 2 * best


def test_uncorrelated_inputs_are_rounded_to_the_nearest():
    matrix, _ = problem(5, 200)
    diagonal = torch.diag(torch.rand(200, dtype=torch.float64) + 0.5)
    assert torch.equal(round_compensated(matrix, diagonal, halves), halves(matrix, None))


def test_blocks_change_nothing(monkeypatch):
    matrix, moment = problem(6, 50)
    whole = round_compensated(matrix, moment, halves)
    monkeypatch.setattr("nncompress.analysis.rounding.gptq.BLOCK", 7)
    assert torch.equal(round_compensated(matrix, moment, halves), whole)


def test_each_input_is_told_by_its_index():
    """Even inputs may only become integers, odd ones halves, whatever the order they are gone through."""
    matrix, moment = problem(4, 30)

    def allowed(values, at):
        return values.round() if int(at) % 2 == 0 else halves(values, at)

    rounded = round_compensated(matrix, moment, allowed)
    assert torch.equal(rounded[:, ::2], rounded[:, ::2].round())
    assert torch.equal(rounded, halves(rounded, None))
    assert not torch.equal(rounded[:, 1::2], rounded[:, 1::2].round())


def by_the_inverse(matrix, moment):
    """Frantar et al. 2023, algorithm 1, input by input."""
    order = moment.diagonal().argsort(descending=True)
    upper = torch.linalg.cholesky(torch.linalg.inv(moment[order][:, order]), upper=True)
    work, result = matrix[:, order].clone(), torch.empty_like(matrix)
    for j in range(len(order)):
        result[:, j] = halves(work[:, j], j)
        work[:, j:] -= ((work[:, j] - result[:, j]) / upper[j, j])[:, None] * upper[j, j:]
    return torch.empty_like(result).index_copy_(1, order, result)


def test_the_same_as_with_factors_of_the_inverse():
    matrix, moment = problem(20, 150, 3)
    assert torch.equal(round_compensated(matrix, moment, halves), by_the_inverse(matrix, moment))
