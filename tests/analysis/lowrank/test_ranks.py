import itertools
import random

import numpy as np
import pytest
import torch

from nncompress.analysis.lowrank.ranks import Candidate, allocate, cheapest, hull, tails


def test_tails_are_the_errors_of_a_rebuilt_matrix():
    matrix = torch.randn(20, 33, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u, s, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    errors = tails(torch.from_numpy(s))
    for rank in range(21):
        rebuilt = (u[:, :rank] * s[:rank]) @ v[:rank]
        assert float(errors[rank]) == pytest.approx(float(((matrix.numpy() - rebuilt) ** 2).sum()), abs=1e-9)


def random_layer(rng, size):
    """A dense candidate and `size` factored ones, their error falling with the cost."""
    errors = sorted((rng.random() for _ in range(size)), reverse=True)
    made = [Candidate("f", (r + 1,), 10 * (r + 1) + rng.randrange(5), e) for r, e in enumerate(errors)]
    return [*made, Candidate("dense", (), 10 * size + 20, 0.0)]


def test_cheapest_keeps_strictly_below_the_limit():
    layer = [Candidate("a", (1,), 5, 0.5), Candidate("b", (2,), 7, 0.3), Candidate("c", (3,), 7, 0.2)]
    assert cheapest(layer, 0.5).form == "c"
    assert cheapest(layer, 0.6).form == "a"
    assert cheapest(layer, 0.2) is None


def test_hull_is_convex_and_below_every_candidate():
    rng = random.Random(5)
    for _ in range(50):
        layer = random_layer(rng, 12)
        points = hull(layer)
        slopes = [(b.error - a.error) / (a.cost - b.cost) for a, b in itertools.pairwise(points)]
        assert slopes == sorted(slopes)
        costs, errors = [p.cost for p in points][::-1], [p.error for p in points][::-1]
        for candidate in layer:
            if costs[0] <= candidate.cost:
                assert candidate.error >= np.interp(candidate.cost, costs, errors) - 1e-12


def test_allocation_is_optimal_where_a_step_hits_the_budget():
    """Budgets that a price per cost hits exactly (the Lagrangian's), against every combination."""
    rng = random.Random(11)
    for _ in range(20):
        layers = [random_layer(rng, 5) for _ in range(4)]
        price = rng.random() / 20
        budget = sum(min(layer, key=lambda c: c.error + price * c.cost).cost for layer in layers)
        greedy = allocate(layers, budget)
        best = min(
            sum(c.error for c in combination)
            for combination in itertools.product(*layers)
            if sum(c.cost for c in combination) <= budget
        )
        assert sum(c.cost for c in greedy) <= budget
        assert sum(c.error for c in greedy) == pytest.approx(best)


def test_allocation_never_exceeds_the_budget_and_comes_close():
    rng = random.Random(13)
    layers = [random_layer(rng, 60) for _ in range(30)]
    dense = sum(layer[-1].cost for layer in layers)
    for share in (0.9, 0.6, 0.3, 0.1):
        spent = sum(c.cost for c in allocate(layers, int(share * dense)))
        assert 0.98 * share * dense <= spent <= share * dense


def test_a_budget_out_of_reach_says_what_is_reachable():
    with pytest.raises(ValueError, match="at least 11 is needed"):
        allocate([[Candidate("a", (1,), 11, 1.0), Candidate("dense", (), 20, 0.0)]], 10)
