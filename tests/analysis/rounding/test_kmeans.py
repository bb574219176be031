import itertools

import numpy as np
import pytest
from sklearn.cluster import KMeans

from nncompress.analysis.rounding.kmeans import codebook, nearest


def lost(values, book, weights=None):
    distances = np.abs(values[:, None] - book[None, :]).min(1) ** 2
    return float(np.sum(distances if weights is None else distances * weights))


def test_exact_against_every_partition():
    rng = np.random.default_rng(1)
    for _ in range(5):
        values, weights = np.sort(rng.normal(size=11)), rng.uniform(0.1, 3, 11)
        for size in (2, 3, 5):
            best = np.inf
            for cuts in itertools.combinations(range(1, 11), size - 1):
                parts = np.split(np.arange(11), cuts)
                means = np.array([np.average(values[p], weights=weights[p]) for p in parts])
                best = min(best, lost(values, means, weights))
            assert lost(values, codebook(values, size, weights), weights) == pytest.approx(best)


@pytest.mark.parametrize("count", [3000, 20000])
def test_no_worse_than_lloyd_from_many_starts(count):
    values = np.random.default_rng(2).standard_t(4, size=count)
    ours = lost(values, codebook(values, 16))
    theirs = KMeans(16, n_init=5, random_state=0).fit(values[:, None]).inertia_
    assert ours <= theirs * 1.001


def test_few_values_are_kept_and_large_means_do_no_harm():
    values = np.array([3.0, 1.0, 3.0, -2.0])
    np.testing.assert_array_equal(codebook(values, 5), [-2.0, 1.0, 3.0])
    spread = np.random.default_rng(3).normal(size=500)
    np.testing.assert_allclose(codebook(spread + 1e6, 4) - 1e6, codebook(spread, 4), atol=1e-5)
    book = np.array([-1.0, 0.0, 4.0])
    np.testing.assert_array_equal(nearest(np.array([-9.0, -0.4, 1.9, 2.1]), book), [0, 1, 1, 2])
