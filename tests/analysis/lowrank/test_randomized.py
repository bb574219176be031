"""Leading singular values by random blocks: those of scipy, and the exact rank or no answer."""

import numpy as np
import pytest
import scipy.linalg
import torch

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.lowrank.decompose import decompose
from nncompress.analysis.lowrank.randomized import LARGE, Wanted
from nncompress.analysis.lowrank.ranks import tails
from nncompress.analysis.observe.moments import with_ridge

SIDE = LARGE


@pytest.fixture(scope="module")
def rotations():
    generator = torch.Generator().manual_seed(5)
    return [torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator))[0] for _ in range(2)]


def matrix_of(values: np.ndarray, rotations) -> tuple[torch.Tensor, np.ndarray]:
    """A float32 matrix with about these singular values, and those it has, by scipy in float64."""
    left, right = rotations
    matrix = (left * torch.from_numpy(values).float()) @ right
    return matrix, scipy.linalg.svdvals(matrix.double().numpy())


ONES = np.arange(1, SIDE + 1)
SPECTRA = {  # values, share of the energy that may be lost, whether a small block is enough
    "a gap": (np.where(ONES <= 20, 5.0, 0.5), 0.4, True),
    "a power law": (ONES**-1.0, 0.02, True),
    "flat": (np.ones(SIDE) + 0.1 / ONES, 0.5, False),
    "slow, to a high rank": (ONES**-0.3, 0.1, False),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_rank_is_the_exact_one_and_the_values_are_those_of_scipy(name, rotations):
    values, share, little = SPECTRA[name]
    matrix, reference = matrix_of(values, rotations)
    limit = share * float((reference**2).sum())
    exact = int((tails(torch.from_numpy(reference)) >= limit).sum())
    spectrum = decompose(matrix, wanted=Wanted(enough=limit))
    lost = tails(spectrum.values, spectrum.beyond)
    assert int((lost >= limit).sum()) == exact
    assert (len(spectrum.values) == exact) == little  # else all of them
    np.testing.assert_allclose(spectrum.values.numpy(), reference[: len(spectrum.values)], rtol=1e-5)
    left, right = spectrum.factors(exact)
    assert float((matrix.double() - left @ right).square().sum()) == pytest.approx(
        float((reference[exact:] ** 2).sum()), rel=1e-4
    )


def test_a_limit_that_a_rank_only_just_misses(rotations):
    matrix, reference = matrix_of(ONES**-0.8, rotations)
    squared = tails(torch.from_numpy(reference))
    for rank in (5, 11):
        for nudge, expected in ((1 + 1e-9, rank), (1 - 1e-9, rank + 1)):
            limit = float(squared[rank]) * nudge
            spectrum = decompose(matrix, wanted=Wanted(enough=limit))
            assert int((tails(spectrum.values, spectrum.beyond) >= limit).sum()) == expected


def test_a_fixed_rank_rounded_up_and_under_a_metric(rotations):
    matrix, reference = matrix_of(ONES**-1.0, rotations)
    spectrum = decompose(matrix, wanted=Wanted(leading=10, multiple=8))
    np.testing.assert_allclose(spectrum.values.numpy(), reference[:16], rtol=1e-5)
    generator = torch.Generator().manual_seed(1)
    inputs = (
        torch.randn(SIDE, 2 * SIDE, generator=generator, dtype=torch.float64)
        * torch.linspace(0.1, 3, SIDE)[:, None]
    )
    metric = Metric(with_ridge(inputs @ inputs.T / 2 / SIDE))
    quick, full = (decompose(matrix, metric, wanted) for wanted in (Wanted(leading=6), None))
    assert len(quick.values) == 6
    torch.testing.assert_close(quick.values, full.values[:6], rtol=1e-5, atol=0)
    errors = [metric.energy(matrix.double() - torch.matmul(*s.factors(6))) for s in (quick, full)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)
    assert errors[0] == pytest.approx(float(tails(quick.values, quick.beyond)[6]), rel=1e-5)


def test_factors_of_a_low_rank_after_all_ranks_were_looked_at(rotations):
    left, right = rotations
    matrix = (left * torch.from_numpy(ONES**-1.0)) @ right.double()
    spectrum = decompose(matrix)
    expected = float(tails(spectrum.values)[20])
    one, other = spectrum.factors(20)
    assert one.shape == (SIDE, 20)
    assert float((matrix - one @ other).square().sum()) == pytest.approx(expected, rel=1e-6)
    assert "basis" not in vars(spectrum)  # all vectors
    one, other = spectrum.factors(SIDE // 2)
    expected = float(tails(spectrum.values)[SIDE // 2])
    assert float((matrix - one @ other).square().sum()) == pytest.approx(expected, rel=1e-6)
    assert "basis" in vars(spectrum)
