"""How many go: ratio, threshold, outliers, budgets; the fast cost against the exact one."""

from __future__ import annotations

import numpy as np
import pytest
from networks import NETWORKS, model

from nncompress.analysis.couplings import find_couplings
from nncompress.analysis.importance import Ranking, group_choices
from nncompress.analysis.importance.choices import Choice
from nncompress.analysis.importance.costs import Costs
from nncompress.analysis.importance.selection import (
    allowed,
    by_ratio,
    by_threshold,
    outliers,
    uniform_budget,
    within_budget,
)
from nncompress.errors import UsageError


def choice(name: str, size: int) -> Choice:
    return Choice(name, "group", size, (), (), ())


def ranked(*scores: float) -> Ranking:
    return Ranking.from_scores(np.array(scores, float))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("unit", ["macs", "params"])
def test_the_fast_cost_is_the_exact_one(name, unit):
    each = model(name)
    couplings = find_couplings(each)
    choices = group_choices(each, couplings)
    exact = couplings.macs if unit == "macs" else couplings.parameters
    costs = Costs(each, choices, unit)
    assert costs.total == pytest.approx(exact())
    generator = np.random.default_rng(0)
    for _ in range(3):
        kept = {c.name: int(generator.integers(1, c.size + 1)) for c in choices}
        removal = {c.name: range(c.size - kept[c.name]) for c in choices}
        assert costs.left(kept) == pytest.approx(exact(removal), rel=1e-6)
    first = choices[0]
    assert costs.saved(first.name, 1, {}) == pytest.approx(costs.total - costs.left({first.name: 1}))


def test_allowed_counts():
    assert allowed(choice("a", 5), ranked(*range(5)), 1) == [5, 4, 3, 2, 1]
    assert allowed(choice("a", 20), ranked(*range(20)), 8) == [20, 16, 8]
    assert allowed(choice("a", 5), ranked(*range(5)), 8) == [5]


def test_ratio_per_group_and_everywhere():
    choices = [choice("a", 4), choice("b", 8)]
    rankings = {"a": ranked(1, 2, 3, 4), "b": ranked(*range(10, 18))}
    assert by_ratio(choices, rankings, 0.5, 1, everywhere=False) == {"a": 2, "b": 4}
    assert by_ratio(choices, rankings, 0.5, 1, everywhere=True) == {"a": 3, "b": 2}  # never all of a group
    assert by_ratio(choices, rankings, 0.99, 1, everywhere=False) == {"a": 3, "b": 7}
    assert by_ratio(choices, rankings, 0.4, 4, everywhere=False) == {"a": 0, "b": 4}


def test_threshold():
    choices = [choice("a", 4)]
    assert by_threshold(choices, {"a": ranked(0.1, 0.5, 0.2, 0.9)}, 0.3, 1) == {"a": 2}
    assert by_threshold(choices, {"a": ranked(0.1, 0.5, 0.2, 0.9)}, 7, 1) == {"a": 3}


def test_outliers_are_outside_the_papers_bounds():
    scores = np.array([1.0, 1.1, 0.9, 1.0, 0.0, 1.0])  # mean 0.833, variance 0.142
    assert outliers(scores, 2) == [4]
    assert outliers(scores, 10) == []
    assert outliers(np.ones(4), 2) == []
    assert len(outliers(np.array([0.0, 1.0]), 1e-6)) == 1  # never all


@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("method", [within_budget, uniform_budget])
def test_budgets_are_met_from_below(unit, share, method):
    each = model("flatten")
    choices = group_choices(each, find_couplings(each))
    costs = Costs(each, choices, unit)
    generator = np.random.default_rng(1)
    rankings = {c.name: Ranking.from_scores(generator.random(c.size)) for c in choices}
    counts = method(choices, rankings, costs, share, 1, f"--{unit}")
    kept = {c.name: c.size - counts[c.name] for c in choices}
    assert min(kept.values()) >= 1
    assert costs.left(kept) <= share * costs.total
    for c in choices:  # nothing that would still fit was taken
        if counts[c.name]:
            assert costs.left({**kept, c.name: kept[c.name] + 1}) > share * costs.total


def test_a_budget_takes_what_loses_least_per_cost():
    each = model("flatten")
    choices = group_choices(each, find_couplings(each))
    costs = Costs(each, choices, "macs")
    cheap, dear = (c.name for c in choices)
    rankings = {
        cheap: Ranking.from_scores(np.full(choices[0].size, 1e-6)),
        dear: Ranking.from_scores(np.full(choices[1].size, 1.0)),
    }
    counts = within_budget(choices, rankings, costs, 0.6, 1, "--macs")
    assert counts[cheap] > 0
    assert counts[dear] == 0


@pytest.mark.parametrize("method", [within_budget, uniform_budget])
def test_an_impossible_budget_says_what_is_reachable(method):
    each = model("residual")
    choices = group_choices(each, find_couplings(each))
    costs = Costs(each, choices, "macs")
    rankings = {c.name: Ranking.from_scores(np.ones(c.size)) for c in choices}
    with pytest.raises(UsageError) as caught:
        method(choices, rankings, costs, 0.001, 1, "--macs")
    reachable = float(caught.value.remedy.split("--macs ")[1].split(",")[0])
    method(choices, rankings, costs, reachable, 1, "--macs")
