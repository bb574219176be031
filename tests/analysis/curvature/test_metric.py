"""Decompositions under a metric, against brute force: gradient descent on the factors, or plain SVD."""

import numpy as np
import pytest
import torch

from nncompress.analysis.curvature.metric import Metric, roots
from nncompress.analysis.lowrank.decompose import decompose
from nncompress.analysis.lowrank.ranks import tails
from nncompress.analysis.lowrank.spatial import SpatialDecomposition
from nncompress.analysis.lowrank.tucker import TuckerDecomposition
from nncompress.analysis.observe.moments import with_ridge


def positive(size: int, seed: int, rank: int | None = None) -> torch.Tensor:
    rows = torch.randn(rank or 3 * size, size, generator=torch.Generator().manual_seed(seed)).double()
    return rows.T @ rows / len(rows)


def cost(metric: Metric, delta: torch.Tensor) -> float:
    """tr(G Δ S Δᵀ), written out."""
    inputs = torch.eye(delta.shape[1]).double() if metric.inputs is None else metric.inputs
    inputs = torch.diag(inputs) if inputs.dim() == 1 else inputs
    outputs = torch.eye(delta.shape[0]).double() if metric.outputs is None else metric.outputs
    return float(torch.trace(outputs @ delta @ inputs @ delta.T))


METRICS = {
    "both": lambda a, b: Metric(positive(b, 1), positive(a, 2)),
    "inputs": lambda a, b: Metric(positive(b, 1)),
    "outputs": lambda a, b: Metric(None, positive(a, 2)),
    "diagonal": lambda a, b: Metric(positive(b, 1).diagonal()),
}


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_the_cut_is_the_best_under_the_metric(kind, shape):
    """Reference: whiten with Cholesky factors, SVD by numpy, and undo the whitening."""
    metric = METRICS[kind](*shape)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(5)).double()
    inputs = torch.eye(shape[1]).double() if metric.inputs is None else metric.inputs
    inputs = torch.diag(inputs) if inputs.dim() == 1 else inputs
    outputs = torch.eye(shape[0]).double() if metric.outputs is None else metric.outputs
    left, right = torch.linalg.cholesky(outputs).T, torch.linalg.cholesky(inputs)
    u, s, v = np.linalg.svd((left @ matrix @ right).numpy(), full_matrices=False)
    spectrum = decompose(matrix, metric)
    np.testing.assert_allclose(spectrum.values.numpy(), s, rtol=1e-6)
    for rank in (1, 3, 7):
        a, b = spectrum.factors(rank)
        best = torch.linalg.solve(left, torch.from_numpy((u[:, :rank] * s[:rank]) @ v[:rank]))
        best = torch.linalg.solve(right, best, left=False)
        torch.testing.assert_close(a @ b, best, rtol=1e-6, atol=1e-8)
        assert cost(metric, matrix - a @ b) == pytest.approx(float((s[rank:] ** 2).sum()), rel=1e-6)
        assert metric.energy(matrix - a @ b) == pytest.approx(cost(metric, matrix - a @ b), rel=1e-9)


def test_statistics_of_low_rank_keep_what_they_show():
    """Ten observations of 40 inputs: what they show is kept, with and without a ridge."""
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(5)).double()
    inputs = positive(40, 3, rank=10)
    for moment in (inputs, with_ridge(inputs)):
        a, b = decompose(matrix, Metric(moment)).factors(10)
        assert torch.isfinite(a).all()
        assert torch.isfinite(b).all()
        assert cost(Metric(inputs), matrix - a @ b) < 1e-3 * cost(Metric(inputs), matrix)


@pytest.mark.parametrize("moment", [positive(6, 4), positive(6, 4, rank=3) + 1e-13 * torch.eye(6).double()])
def test_roots_multiply_to_the_moment_and_a_ridge_fills_zeros(moment):
    root, inverse = roots(moment)
    torch.testing.assert_close(root @ root.T, moment)
    torch.testing.assert_close(root @ inverse, torch.eye(6).double())
    torch.testing.assert_close(with_ridge(torch.zeros(3, 3).double()), torch.eye(3).double())
    assert roots(None) == (None, None)


def compose(vertical: torch.Tensor, horizontal: torch.Tensor) -> torch.Tensor:
    return torch.einsum("orl,rik->oikl", horizontal, vertical)


WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(9)).double()


def test_spatial_without_metric_is_the_svd_of_the_regrouped_weight():
    ours = SpatialDecomposition(WEIGHT)
    regrouped = WEIGHT.permute(1, 2, 0, 3).reshape(12, 18)
    lost = tails(torch.from_numpy(np.linalg.svd(regrouped.numpy(), compute_uv=False).copy()))
    np.testing.assert_allclose(ours.errors().numpy(), lost[1:].numpy(), atol=1e-9)
    for rank in (2, 7):
        error = float((WEIGHT - compose(*ours.factors(rank))).square().sum())
        assert error == pytest.approx(float(lost[rank]), rel=1e-9)


def test_spatial_errors_are_those_of_solving_for_every_rank_alone():
    metric = Metric(with_ridge(positive(36, 1)), positive(6, 2))
    ours = SpatialDecomposition(WEIGHT, metric)
    errors = ours.errors()
    for rank in (1, 4, 9):
        vertical = ours._start(rank)
        features = torch.zeros(3 * rank, 4, 3, 3).double()
        for r in range(rank):
            for column in range(3):
                features[3 * r + column, :, :, column] = vertical[r]
        x = torch.linalg.cholesky(metric.inputs)  # a data set with this second moment
        solution = torch.linalg.lstsq(
            (features.flatten(1) @ x).T, (WEIGHT.flatten(1) @ x).T, driver="gelsd"
        ).solution
        delta = WEIGHT.flatten(1) - solution.T @ features.flatten(1)
        assert float(errors[rank - 1]) == pytest.approx(cost(metric, delta), rel=1e-5)
        refined = metric.energy((WEIGHT - compose(*ours.factors(rank))).flatten(1))
        assert refined <= float(errors[rank - 1]) * (1 + 1e-9)


def test_spatial_turns_reach_what_gradient_descent_reaches():
    metric = Metric(with_ridge(positive(36, 1)), positive(6, 2))
    rank = 4
    ours = metric.energy((WEIGHT - compose(*SpatialDecomposition(WEIGHT, metric).factors(rank))).flatten(1))
    best = float("inf")
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        v = torch.randn(rank, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        h = torch.randn(6, rank, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([v, h], max_iter=300, line_search_fn="strong_wolfe")

        def loss(v=v, h=h, solver=solver):
            solver.zero_grad()
            delta = (WEIGHT - compose(v, h)).flatten(1)
            value = torch.trace(metric.outputs @ delta @ metric.inputs @ delta.T)
            value.backward()
            return value

        solver.step(loss)
        best = min(best, float(loss().detach()))
    assert ours <= 1.1 * best  # neither is sure of the global optimum


@pytest.mark.parametrize("metric", [None, Metric(with_ridge(positive(36, 1)), positive(6, 2))])
def test_tucker_factors_lose_what_the_metric_says(metric):
    ours = TuckerDecomposition(WEIGHT, metric)
    measure = metric or Metric()

    def lost(ranks):
        p, c, q = ours.factors(ranks)
        composed = torch.einsum("ai,bakl,ob->oikl", p, c, q)
        return measure.energy((WEIGHT - composed).flatten(1))

    total = measure.energy(WEIGHT.flatten(1))
    assert lost((4, 6)) < 1e-7 * total
    for ranks, estimate in ours.errors().items():
        slack = 1e-7 * total if metric is None else 0.25 * estimate + 1e-6 * total  # a separable estimate
        assert lost(ranks) <= estimate + slack
    p, c, q = ours.factors((2, 3))
    assert (p.shape, c.shape, q.shape) == ((2, 4), (3, 2, 3, 3), (6, 3))
    # with all inputs kept, Tucker is the best channel form
    channel = tails(decompose(WEIGHT.flatten(1), metric).values)
    assert lost((4, 3)) == pytest.approx(float(channel[3]), rel=1e-5)


def test_all_forms_of_a_weight_multiply_it_with_the_moment_once(monkeypatch):
    weight, metric, shapes = torch.randn(8, 5, 3, 2).double(), Metric(positive(30, 1), positive(8, 2)), []
    plain = Metric.times_inputs
    monkeypatch.setattr(
        Metric, "times_inputs", lambda own, matrix: shapes.append(matrix.shape) or plain(own, matrix)
    )
    matrix = weight.flatten(1)
    total = metric.energy(matrix)
    assert float(decompose(matrix.clone(), metric).values.square().sum()) == pytest.approx(total, rel=1e-9)
    assert float(SpatialDecomposition(weight.float(), metric).errors()[-1]) <= total
    for decomposition in (SpatialDecomposition(weight, metric), TuckerDecomposition(weight, metric)):
        assert len(decomposition.errors())
    shapes = [shape for shape in shapes if shape == matrix.shape]
    assert len(shapes) <= 3  # of the weight, of its rounding, and of the weight again


def test_what_is_kept_of_a_product_is_that_of_the_values_then():
    metric, matrix = Metric(positive(6, 1)), torch.randn(3, 6).double()
    before = metric.energy(matrix)
    matrix.mul_(2)
    assert metric.energy(matrix) == pytest.approx(4 * before, rel=1e-9)
    metric.forget()
    assert metric.energy(matrix) == pytest.approx(4 * before, rel=1e-9)


@pytest.mark.parametrize("shape", [(7, 4, 3, 2), (6, 5, 2, 3)])
@pytest.mark.parametrize("kind", ["both", "inputs", "outputs"])
def test_normal_equations_are_those_of_the_features_written_out(kind, shape):
    """With H[o, r, l] · V[r, i, k]: a feature per (r, l), V in column l and 0 elsewhere; with Q · C · P:
    one per (a, k), P in place k."""
    outputs, inputs, height, width = shape
    weight, metric = torch.randn(shape).double(), METRICS[kind](outputs, inputs * height * width)
    second = torch.eye(inputs * height * width).double() if metric.inputs is None else metric.inputs
    vertical = torch.randn(3, inputs, height).double()
    features = torch.zeros(3, width, inputs, height, width).double()
    for column in range(width):
        features[:, column, ..., column] = vertical
    features = features.reshape(3 * width, -1)
    cross, gram = SpatialDecomposition(weight, metric)._normal_equations(vertical)
    torch.testing.assert_close(cross, features @ second @ weight.flatten(1).T)
    torch.testing.assert_close(gram, with_ridge(features @ second @ features.T, 1e-9))
    project = torch.randn(2, inputs).double()
    features = (
        torch.einsum("ai,kl->akil", project, torch.eye(height * width).double()).flatten(2).flatten(0, 1)
    )
    through, gram = TuckerDecomposition(weight, metric)._let_through(project)
    torch.testing.assert_close(through, features @ second)
    torch.testing.assert_close(gram, with_ridge(features @ second @ features.T, 1e-9))
