"""How many go: ratio, threshold, outliers, budgets; the fast cost against the exact one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import NETWORKS, model
from torch import Tensor, nn

from nncompress.analysis.compensation import Cut, without_data
from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings, remove_units
from nncompress.analysis.importance import Ranking, group_choices, separate_choices
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
from nncompress.ir import Model
from nncompress.passes.cut import apply_cut


def choice(name: str, size: int) -> Choice:
    return Choice(name, "group", size, (), (), ())


def ranked(*scores: float) -> Ranking:
    return Ranking.from_scores(np.array(scores, float))


class Recurrent(nn.Module):
    """A fused layer, then cells, then attention between the states."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.rnn = kind(6, 8, batch_first=True, **options)
        width = self.rnn(torch.zeros(1, 1, 6))[0].shape[-1]
        self.cell = nn.GRUCell(width, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, h = [], x.new_zeros(len(x), 12)
        for y in self.rnn(x)[0].unbind(1):
            h = self.cell(y, h)
            states.append(h)
        y = torch.stack(states, 1)
        return self.head(torch.einsum("btc,bsc->bts", y, y) @ self.attention(y, y, y)[0])


RECURRENT = {
    "lstm": (nn.LSTM, {}),
    "lstm-layers-both-ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "gru": (nn.GRU, {"bias": False}),
    "rnn": (nn.RNN, {}),
}


def counted(name: str) -> Model:
    if name in NETWORKS:
        return model(name)
    torch.manual_seed(0)
    kind, options = RECURRENT[name]
    return Model.from_module(Recurrent(kind, **options).eval(), (torch.randn(2, 4, 6),))


@pytest.mark.parametrize("name", [*NETWORKS, *RECURRENT])
def test_the_predicted_cost_is_the_counted_cost_of_the_result(name):
    each = counted(name)
    choices = group_choices(each, find_couplings(each))
    predicted = [Costs(each, choices, unit) for unit in ("macs", "params")]

    def counts(of: Model) -> list[int]:
        return [cost(of).macs, cost(of).parameters]

    assert [costs.total for costs in predicted] == counts(each)
    generator = np.random.default_rng(0)
    kept = {c.name: int(generator.integers(1, c.size + 1)) for c in choices}
    smaller = each.copy()
    remove_units(smaller, {c.name: range(c.size - kept[c.name]) for c in choices})
    assert [costs.left(kept) for costs in predicted] == counts(smaller)
    for c in choices:
        alone = each.copy()
        remove_units(alone, {c.name: range(c.size - 1)})
        for costs, count in zip(predicted, counts(alone)):
            assert costs.left({c.name: 1}) == count < costs.total
            assert costs.saved(c.name, 1, {}) == costs.total - count


@pytest.mark.parametrize("name", ["residual", "stages"])
def test_narrowed_branches_are_predicted_too(name):
    each = model(name)
    choices, _ = separate_choices(each, find_couplings(each))
    costs = Costs(each, choices, "macs")
    kept = {c.name: (c.size + 1) // 2 for c in choices}
    units = {c.name: range(c.size - kept[c.name]) for c in choices}

    def of(kind: str) -> dict[str, range]:
        return {c.layer.name if c.layer else c.name: units[c.name] for c in choices if c.kind == kind}

    cut = Cut(of("group"), of("reads"), of("writes"), ())
    smaller, _ = apply_cut(each, cut, without_data(each, cut), None, verify=True)
    assert costs.left(kept) == cost(smaller).macs


def test_counts_that_may_stay_are_multiples_and_all():
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


def test_a_threshold_keeps_what_is_above_it_and_at_least_one():
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
