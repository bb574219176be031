"""`reduce`: nodes and ranks under one budget."""

from __future__ import annotations

import pytest
import torch
from networks import built_once, inputs, model
from records import Records
from torch import Tensor, nn

from nncompress import pipeline
from nncompress.analysis.cost import cost
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.graph.verify import Distances
from nncompress.passes import Context, Factorize, Pass, PruneNodes, Reduce
from nncompress.passes.reduce.plan import Budget, _Layer


def samples(count: int, seed: int) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


@built_once
def redundant() -> Model:
    """24 hidden units of which 12 are copies, then a layer of rank 4: either alone is half of what can go."""
    torch.manual_seed(0)
    first, second, last = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 5)
    with torch.no_grad():
        first.weight[12:] = first.weight[:12]
        first.bias[12:] = first.bias[:12]
        second.weight.copy_(torch.randn(24, 4) @ torch.randn(4, 24) / 4)
    return Model.from_module(
        nn.Sequential(first, nn.ReLU(), second, nn.GELU(), last).eval(), (samples(2, 1),)
    )


def moved(original: Model, small: Model, x: Tensor) -> float:
    distances = Distances(original.outputs)
    with torch.no_grad():
        distances.add(small.outputs_of(x), original.outputs_of(x))
    return max(row.amount for row in distances.rows())


def run(given: Model, each: Pass, x: Tensor | None = None) -> tuple[Model, pipeline.Step]:
    data = Records((samples(256, 2) if x is None else x,))
    result, (step,) = pipeline.run(given, [each], Context(data=data, limit=None))  # type: ignore[arg-type]
    return result, step


def test_copies_go_and_ranks_fall_where_either_alone_would_not_do():
    original, fresh = redundant(), samples(500, 3)
    before = cost(original).macs
    budget = (12 * 12 + 12 * 4 + 4 * 24 + 24 * 5) / before  # nothing is lost yet
    small, step = run(original, Reduce(macs=budget))
    assert cost(small).macs <= budget * before
    assert moved(original, small, fresh) < 1e-3
    assert {c.where for c in step.changes if c.applied} == {"0", "2"}
    for alone in (PruneNodes(macs=budget), Factorize(macs=budget)):
        assert moved(original, run(original, alone)[0], fresh) > 0.05


@pytest.mark.parametrize(("unit", "blocks"), [("macs", "grouped"), ("params", "separate")])
def test_the_budget_is_met_by_exact_count_and_not_by_much_more(unit, blocks):
    original = model("residual")
    x = torch.cat([inputs("residual", 32, seed=s)[0] for s in (1, 2)])
    small, _ = run(original, Reduce(**{unit: 0.5}, blocks=blocks), x)
    before, after = (getattr(cost(m), {"params": "parameters"}.get(unit, unit)) for m in (original, small))
    assert 0.4 * before < after <= 0.51 * before


def test_what_the_plan_counts_is_what_is_left(monkeypatch):
    """Of MACs, exactly: every layer's, dense or factored, at its width."""
    plans = []
    choose = Budget.plan
    monkeypatch.setattr(Budget, "plan", lambda *given: plans.append(choose(*given)) or plans[-1])
    small, _ = run(redundant(), Reduce(macs=0.4))
    assert plans[0].removed
    assert plans[0].factors
    assert plans[0].cost == pytest.approx(cost(small).macs)


def test_a_large_loss_counts_more_than_two_of_half_its_size(monkeypatch):
    """Estimates are made near the original: the larger a loss is, the more they leave out."""
    counted = []
    lost = _Layer.lost
    monkeypatch.setattr(
        _Layer, "lost", lambda layer, c: counted.append((c, lost(layer, c))) or counted[-1][1]
    )
    run(redundant(), Reduce(macs=0.4))
    found = {c.error: loss for c, loss in counted if c is not None and c.error > 1e-6}
    small, large = min(found), max(found)
    assert large > 2 * small
    assert found[large] / found[small] == pytest.approx((large / small) ** 1.4)


@pytest.mark.parametrize("name", ["depthwise", "transposed", "tied"])
def test_what_keeps_its_rank_is_said(name):
    original = model(name)
    x = torch.cat([inputs(name, 32, seed=s)[0] for s in (1, 2)])
    _, step = run(original, Reduce(macs=0.8), x)
    assert any("keeps its rank" in change.what for change in step.changes)


def test_no_budget_and_two_are_refused():
    with pytest.raises(UsageError, match="one budget says how much"):
        Reduce(macs=0.5, params=0.5)
    with pytest.raises(UsageError, match="how much is left"):
        run(redundant(), Reduce())


def test_without_data_it_refuses():
    with pytest.raises(UsageError, match="reduce needs data"):
        pipeline.run(redundant(), [Reduce(macs=0.5)], Context())


def test_a_budget_out_of_reach_is_refused_with_one_that_is_not():
    with pytest.raises(UsageError, match=r"--macs 0\.001 cannot be reached") as refused:
        run(redundant(), Reduce(macs=0.001))
    within = float(refused.value.remedy.split()[1].rstrip(","))
    small, _ = run(redundant(), Reduce(macs=within))
    assert cost(small).macs <= within * cost(redundant()).macs


def test_an_excluded_layer_keeps_its_nodes_and_its_rank():
    small, step = run(redundant(), Reduce(macs=0.8, exclude=("2",)))
    assert "2" not in {change.where for change in step.changes if change.applied}
    assert small.tensor("2.weight").shape[0] == 24


def test_nodes_and_ranks_are_multiples():
    _, step = run(redundant(), Reduce(macs=0.5, round_to=4))
    for change in step.changes:
        if "rank" in change.numbers:
            assert change.numbers["rank"] % 4 == 0
        elif change.applied:
            assert (change.numbers["nodes_before"] - len(change.numbers["removed"])) % 4 == 0
