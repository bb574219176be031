"""What a removal is proven by, and what becomes of one that cannot be."""

from __future__ import annotations

import pytest
import torch
from networks import model
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.couplings import (
    check,
    find_couplings,
    prove,
    remove_proven,
    remove_units,
)
from nncompress.analysis.couplings.proof import TOLERANCE
from nncompress.errors import VerificationError
from nncompress.ir import Model
from tests.analysis.test_couplings import analysed, share_of_each_group


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_the_proof_fails_for_a_wrong_removal():
    given = model("residual")
    couplings = find_couplings(given)
    removal = share_of_each_group(couplings)
    wrong = {name: (units + 1) % couplings[name].size for name, units in removal.items()}
    pruned = given.copy()
    remove_units(pruned, wrong)
    assert prove(couplings, removal, pruned).error > 1e-3


def test_what_cannot_be_proven_stays_whole(monkeypatch):
    """Break one rule on purpose: the groups that need it stay, the others go."""
    from nncompress.ir.edit import resize

    monkeypatch.delitem(resize.REWRITES, "pad")
    given = model("residual")
    couplings = find_couplings(given)
    outcome = remove_proven(couplings, {"conv1": [0, 1], "conv2": [0]})
    assert set(outcome.refused) == {"conv2"}
    assert outcome.proof.error < 1e-5
    assert outcome.model.tensor("conv1.weight").shape[0] == 14


def test_all_groups_at_fault_are_found_in_one_comparison(monkeypatch):
    """Some groups pass a softmax whose rule is broken, some a slice whose literals are not rewritten."""
    from nncompress.analysis.couplings import proven
    from nncompress.analysis.couplings.rules import pointwise
    from nncompress.analysis.couplings.rules import table as rules
    from nncompress.ir.edit import resize

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(9))

        def forward(self, x):
            for number, layer in enumerate(self.layers):
                x = layer(x)
                x = x.softmax(-1) if number % 2 else torch.cat([x[:, :6].relu(), x[:, 6:].tanh()], 1)
            return x

    monkeypatch.setitem(rules.RULES, "softmax", pointwise.pointwise)
    monkeypatch.delitem(resize.REWRITES, "slice")
    couplings = analysed(Chain(), torch.randn(4, 12))[1]
    tries = []
    monkeypatch.setattr(proven, "remove_units", lambda *a: (tries.append(a), remove_units(*a)))
    outcome = remove_proven(couplings, {g.name: [0] for g in couplings.groups})
    softmaxed = {f"layers.{n}" for n in (1, 3, 5, 7)}
    assert softmaxed <= set(outcome.refused)
    assert all("softmax" in outcome.refused[name] for name in softmaxed)
    assert len(tries) == 2  # all at once, and what is left
    assert outcome.proof.error < 1e-5


class Amplifying(nn.Module):
    """The order in which a sum is rounded moves its results by a per mille."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 96), nn.Linear(96, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(1e5 * self.b(F.relu(self.a(x))))


def test_rounding_that_a_model_amplifies_is_told_from_a_wrong_removal():
    """float32 cannot: here the unit that was removed instead of another moves as little as rounding does."""
    net = Amplifying()
    with torch.no_grad():
        net.a.bias[7:9] = 5.0
        net.b.weight[:, 7:9] *= 1e-7
    given, couplings = analysed(net, torch.randn(2, 16))
    right, wrong = given.copy(), given.copy()
    remove_units(right, {"a": [*range(20, 40), 7]})
    remove_units(wrong, {"a": [*range(20, 40), 8]})
    asked = {"a": [*range(20, 40), 7]}
    assert prove(couplings, asked, right).error > TOLERANCE
    assert check(couplings, asked, right).error < 1e-8
    assert prove(couplings, asked, wrong).error < 0.1
    with pytest.raises(VerificationError, match="does not compute what the original computes"):
        check(couplings, asked, wrong)


class StandardDeviation(nn.Module):
    """Unbiased, as the annotated transformer's norm has it: of one survivor it is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.a(x)
        return self.b((h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-5))


def test_units_of_which_too_few_are_left_to_compute_with_stay():
    network = Model.from_module(StandardDeviation().eval(), (torch.randn(4, 6),))
    couplings = find_couplings(network)
    two = remove_proven(couplings, {"a": list(range(6))})
    assert not two.refused
    assert two.proof.error < 1e-5
    assert two.model.tensor("a.weight").shape == (2, 6)
    one = remove_proven(couplings, {"a": list(range(7))})
    assert list(one.refused) == ["a"]
    assert one.model.tensor("a.weight").shape == (8, 6)


class Picks(nn.Module):
    """Units in the order of a list, which another pick may share, and that the model may change."""

    def __init__(self, order, changes: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(2 * len(order), 3)
        self.register_buffer("order", torch.tensor(order))
        self.changes = changes

    def forward(self, x):
        found = torch.cat([self.a(x)[:, self.order], self.b(x).index_select(-1, self.order % 8)], -1)
        if self.changes:
            self.order.copy_(self.order.flip(0))
        return self.c(found)


@pytest.mark.parametrize("order", [[-1, -8, 3, 2, 0, 1, 5, 4], [7, 7, 3, 3, 0], [6, 2, 4]])
def test_what_a_list_picks_is_removed_with_its_units(order):
    given, couplings = analysed(Picks(order).eval(), torch.randn(4, 6))
    groups = [g for g in couplings.groups if {m.tensor for m in g.members} & {"a.weight", "b.weight"}]
    assert groups
    removal = {g.name: [0] for g in groups}
    pruned = given.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5 < 1e-3 < proof.effect


def test_units_behind_a_list_that_the_model_changes_stay():
    _, couplings = analysed(Picks([3, 2, 1, 0], changes=True).eval(), torch.randn(4, 6))
    assert not any(m.tensor in ("a.weight", "b.weight") for g in couplings.groups for m in g.members)


def test_a_pick_from_a_single_number_is_no_list():
    class Scaled(Picks):
        def forward(self, x):
            return super().forward(x) * x.sum().index_select(0, self.only)

    module = Scaled([3, 2, 1, 0]).eval()
    module.register_buffer("only", torch.tensor([0]))
    _, couplings = analysed(module, torch.randn(4, 6))
    assert any(m.tensor == "a.weight" for g in couplings.groups for m in g.members)
