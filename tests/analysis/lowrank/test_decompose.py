import numpy as np
import pytest
import scipy.linalg
import torch

from nncompress.analysis.lowrank.decompose import decompose, singular_values


def matrices():
    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    yield "wide", normal(40, 300)
    yield "tall", normal(300, 40)
    yield "float32", normal(64, 64).float()
    yield (
        "decaying",
        normal(50, 50) @ torch.diag(torch.logspace(0, -9, 50, dtype=torch.float64)) @ normal(50, 80),
    )


@pytest.mark.parametrize(("name", "matrix"), list(matrices()), ids=lambda v: v if isinstance(v, str) else "")
def test_singular_values_agree_with_scipy_in_float64(name, matrix):
    reference = scipy.linalg.svdvals(matrix.double().numpy())
    np.testing.assert_allclose(singular_values(matrix).numpy(), reference, rtol=1e-5)
    quick = decompose(matrix).values.numpy()  # never off by more than float64 allows a Gram matrix
    np.testing.assert_allclose(quick**2, reference**2, rtol=1e-5, atol=1e-13 * reference[0] ** 2)


@pytest.mark.parametrize(("name", "matrix"), list(matrices()), ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("rank", [1, 7, 40])
def test_factors_are_the_closest_matrix_of_their_rank(name, matrix, rank):
    left, right = decompose(matrix).factors(rank)
    assert left.shape == (matrix.shape[0], rank)
    assert right.shape == (rank, matrix.shape[1])
    lost = float((matrix.double() - left @ right).square().sum())
    reference = scipy.linalg.svdvals(matrix.double().numpy())
    floor = 1e-12 * float(matrix.double().square().sum())  # below it, float64 cannot tell
    assert lost == pytest.approx(float((reference[rank:] ** 2).sum()), rel=1e-6, abs=floor)


def test_rank_deficient_and_zero_matrices():
    generator = torch.Generator().manual_seed(1)
    low = torch.randn(30, 4, generator=generator) @ torch.randn(4, 50, generator=generator)
    left, right = decompose(low).factors(4)
    torch.testing.assert_close((left @ right).float(), low, rtol=1e-4, atol=1e-5)
    left, right = decompose(torch.zeros(5, 8)).factors(2)
    assert torch.isfinite(left).all()
    assert torch.isfinite(right).all()
    torch.testing.assert_close((left @ right), torch.zeros(5, 8, dtype=torch.float64))
