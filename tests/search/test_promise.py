"""The promise: its bound against exact coverage, and what it says of too few samples."""

import math

import numpy as np
import pytest

from nncompress.search.loss import shares
from nncompress.search.promise import largest_drop


def test_where_the_models_answer_alike_it_is_the_score_bound_of_a_share():
    z = 1.6448536269514722
    for records in (10, 100, 5000):
        assert math.isclose(largest_drop(0, 0, records), z**2 / (records + z**2), rel_tol=1e-9)


def test_the_score_at_the_bound_is_the_quantile():
    """Against a likelihood maximised by search, not by the closed form."""
    z = 1.6448536269514722
    for b, c, n in ((12, 5, 200), (3, 0, 50), (40, 41, 1000)):
        bound = largest_drop(b, c, n)
        rate = np.linspace(1e-9, (1 - bound) / 2 - 1e-9, 400_001)
        likelihood = c * np.log(rate) + b * np.log(rate + bound)
        likelihood += (n - b - c) * np.log(1 - 2 * rate - bound)
        q = rate[likelihood.argmax()]
        score = (b - c - n * bound) / math.sqrt(n * (2 * q + bound - bound**2))
        assert math.isclose(score, -z, abs_tol=2e-3)


@pytest.mark.parametrize(("lost", "gained"), [(0.005, 0.0), (0.012, 0.007), (0.03, 0.025), (0.05, 0.01)])
@pytest.mark.parametrize("records", [200, 1000, 5000])
def test_it_holds_in_95_of_100(lost, gained, records):
    """Drawn 20,000 times: the bound lies above the true drop as often as is said, within what a score
    interval is known to miss and 3 standard errors of the count."""
    generator = np.random.default_rng(records)
    counts = generator.multinomial(records, [lost, gained, 1 - lost - gained], 20_000)[:, :2]
    different, times = np.unique(counts, axis=0, return_counts=True)
    held = sum(
        t
        for (b, c), t in zip(different.tolist(), times.tolist())
        if largest_drop(b, c, records) >= lost - gained
    )
    assert held / 20_000 >= 0.94


def test_how_many_samples_it_takes():
    assert shares(0, 0, 50).needed(0.005) == 539  # z² (1 / 0.005 - 1) = 538.4
    needed = shares(12, 8, 1000).needed(0.01)
    assert needed is not None
    assert largest_drop(0.012 * needed, 0.008 * needed, needed) <= 0.01
    assert largest_drop(0.012 * (needed - 1), 0.008 * (needed - 1), needed - 1) > 0.01
    assert shares(12, 2, 1000).needed(0.01) is None  # the drop itself is as large
