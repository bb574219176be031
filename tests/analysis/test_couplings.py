"""Groups found in the smallest networks that show each rule; every removal is proven."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import NETWORKS, model
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import (
    Couplings,
    find_couplings,
    prove,
    remove_units,
)
from nncompress.analysis.couplings.trace import Trace
from nncompress.errors import UsageError
from nncompress.ir import Model


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def share_of_each_group(couplings: Couplings, ratio: float = 0.4, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        g.name: generator.choice(g.size, min(g.size - 1, max(1, int(ratio * g.size))), replace=False)
        for g in couplings.groups
    }


def analysed(module: nn.Module, *inputs: torch.Tensor) -> tuple[Model, Couplings]:
    given = Model.from_module(module.eval(), inputs)
    return given, find_couplings(given)


def prune(given: Model, couplings: Couplings) -> Model:
    """Remove 40 % of every group; the result must be proven, and the removal must have mattered."""
    removal = share_of_each_group(couplings)
    pruned = given.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5
    assert proof.effect > 1e-3
    return pruned


def sizes(couplings: Couplings) -> dict[str, int]:
    return {g.name: g.size for g in couplings.groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_random_removal_is_proven_and_its_cost_predicted(name):
    given = model(name)
    couplings = find_couplings(given)
    removal = share_of_each_group(couplings)
    pruned = given.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5
    assert proof.effect > 1e-3
    assert couplings.parameters(removal) == sum(p.numel() for p in pruned.graph_module.parameters())
    assert couplings.macs(removal) == cost(pruned).macs
    assert couplings.macs() == cost(given).macs


def test_zero_padded_shortcuts_tie_only_what_they_carry():
    couplings = find_couplings(model("residual"))
    # 8 stem channels go on to the middle 8 of 16; the outer 8 belong to the second convolution alone.
    assert sizes(couplings) == {"stem": 8, "conv1": 16, "conv2": 8}
    stem = {(m.tensor, m.dim): m for m in couplings["stem"].members}
    assert stem["conv2.weight", 0].indices.tolist() == list(range(4, 12))
    assert stem["head.weight", 1].indices.tolist() == list(range(4, 12))
    outer = {(m.tensor, m.dim): m for m in couplings["conv2"].members}
    assert outer["head.weight", 1].indices.tolist() == [0, 1, 2, 3, 12, 13, 14, 15]


def test_a_group_knows_its_producers_consumers_and_sites():
    couplings = find_couplings(model("concat"))
    a = couplings["a"]
    assert [(m.tensor, m.dim) for m in a.producers] == [("a.weight", 0)]
    assert [(m.tensor, m.dim) for m in a.consumers] == [("mix.weight", 1)]
    assert [(m.tensor, m.dim) for m in a.role("vector")] == [("a.bias", 0)]
    assert [s.node.name for s in a.sites] == ["conv2d", "relu", "cat"]
    assert a.sites[-1].unit.tolist() == [*range(8), *[-1] * 6]
    assert a.layers == ("a", "mix")


def test_outputs_and_inputs_are_pinned_with_a_reason():
    couplings = find_couplings(model("concat"))
    assert "output" in couplings.pinned["head.weight", 0]
    assert ("a.weight", 0) not in couplings.pinned
    assert "fixed" in couplings.pinned["a.weight", 1]


class Heads(nn.Module):
    """Separate q, k, v with grouped queries, by view and transpose."""

    def __init__(self, heads: int = 6, kv: int = 2, d: int = 5) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(7, heads * d), nn.Linear(7, kv * d), nn.Linear(7, kv * d)
        self.o, self.heads, self.kv, self.d = nn.Linear(heads * d, 3), heads, kv, d

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.d).transpose(1, 2)
        k, v = (f(x).view(b, n, self.kv, self.d).transpose(1, 2) for f in (self.k, self.v))
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(b, n, -1))


def test_the_unit_of_grouped_query_attention_is_a_kv_head_with_its_queries():
    given, couplings = analysed(Heads(), torch.randn(2, 4, 7))
    assert sizes(couplings) == {"q": 2}
    members = {(m.tensor, m.dim): m.unit for m in couplings["q"].members}
    assert members["q.weight", 0].tolist() == [0] * 15 + [1] * 15
    assert members["k.weight", 0].tolist() == [0] * 5 + [1] * 5
    assert members["o.weight", 1].tolist() == [0] * 15 + [1] * 15
    pruned = prune(given, couplings)
    assert pruned.tensor("q.weight").shape == (15, 7)


def test_rotary_positions_leave_whole_heads():
    """cos and sin are labelled along the head size; a unit that is a place in every head would be useless."""
    from benchmarks.architectures import ARCHITECTURES, build

    couplings = find_couplings(build(ARCHITECTURES["llama-gqa"]))
    assert sizes(couplings)["layers.0.q"] == 2
    assert couplings["layers.0.q"].layers == tuple(f"layers.0.{name}" for name in "qkvo")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("bti,ij->btj", "btj,jk->btk"),
        ("...i,ij->...j", "...j,jk"),  # without an arrow: what occurs once, sorted
        ("bti,btl,ilj->btj", "btj,jk->btk"),
    ],
)
def test_einsum_in_any_spelling(first, second):

    class Einsum(nn.Module):
        def __init__(self):
            super().__init__()
            three = first.count(",") == 2
            self.v, self.w = nn.Parameter(torch.randn(5, *[5] * three, 9)), nn.Parameter(torch.randn(9, 8))
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            x = torch.relu(torch.einsum(first, *[x] * first.count(","), self.v))
            return self.out(torch.relu(torch.einsum(second, x, self.w)))

    given, couplings = analysed(Einsum(), torch.randn(2, 4, 5))
    assert sizes(couplings) == {"v": 9, "w": 8}
    prune(given, couplings)


def test_attention_without_heads_keeps_its_scale():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.ModuleList([nn.Linear(6, 10) for _ in "qkv"])
            self.o = nn.Linear(10, 2)

        def forward(self, x):
            return self.o(F.scaled_dot_product_attention(*(f(x) for f in self.qkv)))

    given, couplings = analysed(Single(), torch.randn(2, 4, 6))
    assert sizes(couplings) == {"qkv.0": 10, "qkv.2": 10}  # query with key, value apart
    prune(given, couplings)


@pytest.mark.parametrize(("groups", "channels", "units"), [(8, 16, 8), (2, 16, 16)])
def test_grouped_convolution_goes_by_group_or_by_column(groups, channels, units):
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, channels, 1)
            self.b = nn.Conv2d(channels, channels, 3, groups=groups)
            self.c = nn.Conv2d(channels, 4, 1)

        def forward(self, x):
            return self.c(F.relu(self.b(F.relu(self.a(x)))))

    given, couplings = analysed(Grouped(), torch.randn(2, 3, 8, 8))
    assert sum(sizes(couplings).values()) == units
    pruned = prune(given, couplings)
    convolution = next(n for n in pruned.graph.nodes if n.name == "conv2d_1")
    kept = pruned.tensor("b.weight").shape
    assert convolution.args[6] * kept[1] == pruned.tensor("a.weight").shape[0]
    assert (convolution.args[6] == groups) == (groups == 2)


def test_units_of_a_transposed_grouped_convolution_go_by_groups():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(18, 4, 1)
            self.b = nn.ConvTranspose2d(12, 18, 2, 2, groups=3)

        def forward(self, x):
            return self.c(F.relu(self.b(F.relu(self.a(x)))))

    given, couplings = analysed(Up(), torch.randn(2, 3, 4, 4))
    assert sizes(couplings) == {"a": 4, "b": 6}
    prune(given, couplings)


def test_an_unknown_op_pins_what_it_touches_and_nothing_else():
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(3, 2)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.c(torch.linalg.cross(self.b(x)[:, :3], self.b(x)[:, 3:6]))

    given, couplings = analysed(Unknown(), torch.randn(2, 6))
    assert sizes(couplings) == {"a": 8}
    assert "cross behind b" in couplings.pinned["b.weight", 0]
    prune(given, couplings)


def test_a_rule_that_fails_pins_like_an_unknown_op(monkeypatch):
    from nncompress.analysis.couplings.rules import table as rules

    def broken(*_):
        raise IndexError("unforeseen")

    monkeypatch.setitem(rules.RULES, "tanh", broken)
    couplings = find_couplings(model("concat"))
    assert set(sizes(couplings)) == {"a", "mix"}
    assert [n.name for n in couplings.trace.surprises] == ["tanh"]


def test_constants_and_buffers_follow():
    class Constants(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.pos = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
            self.register_buffer("mask", (torch.rand(8) > 0.3).float())
            self.scale, self.out = nn.Parameter(torch.rand(8) + 0.5), nn.Linear(8, 3)

        def forward(self, ids):
            x = (self.embed(ids) + self.pos) * self.mask
            return self.out(x * self.scale)

    given, couplings = analysed(Constants(), torch.randint(0, 11, (2, 5)))
    assert {m.tensor for m in couplings["embed"].members} == {
        "embed.weight", "pos", "mask", "scale", "out.weight",
    }  # fmt: skip
    pruned = prune(given, couplings)
    assert pruned.tensor("mask").shape == (5,)
    assert pruned.tensor("pos").shape == (1, 5, 5)


def test_split_sizes_become_unequal():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 16), nn.Linear(8, 6), nn.Linear(8, 6)

        def forward(self, x):
            left, right = torch.relu(self.a(x)).chunk(2, -1)
            return self.b(left) - self.c(right)

    given, couplings = analysed(Split(), torch.randn(2, 5))
    assert sizes(couplings) == {"a": 8, "a#2": 8}
    pruned = given.copy()
    removal = {"a": [0, 1, 2], "a#2": [7]}
    remove_units(pruned, removal)
    assert prove(couplings, removal, pruned).error < 1e-6
    assert pruned.tensor("b.weight").shape == (6, 5)
    assert pruned.tensor("c.weight").shape == (6, 7)


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_run_over_the_survivors(kind, written_out):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.w = nn.Linear(5, 12), nn.Linear(12, 3), nn.Parameter(torch.rand(12) + 0.5)

        def forward(self, x):
            x = self.a(x)
            if kind == "layer" and written_out:
                centred = x - x.mean(-1, keepdim=True)
                x = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * self.w
            elif kind == "layer":
                x = F.layer_norm(x, (12,), self.w)
            elif written_out:
                x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.w
            else:
                x = F.rms_norm(x, (12,), self.w, 1e-5)
            return self.b(x)

    given, couplings = analysed(Normed(), torch.randn(2, 5))
    assert sizes(couplings) == {"a": 12}
    prune(given, couplings)


def test_the_place_of_a_maximum_over_channels_pins_them():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 12), nn.Embedding(12, 3)

        def forward(self, x):
            score, place = self.a(x).max(-1, keepdim=True)
            return self.b(place[:, 0]) * score

    _, couplings = analysed(Routed(), torch.randn(2, 5))
    assert not couplings.groups


def test_tied_weights_stay_tied():
    given = model("tied")
    couplings = find_couplings(given)
    pruned = prune(given, couplings)
    shared = [n for n, _ in given.graph_module.named_parameters()]
    assert [n for n, _ in pruned.graph_module.named_parameters()] == shared


def test_a_pruned_dim_of_one_does_not_vanish_in_a_squeeze():
    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Linear(2, 3)

        def forward(self, x):
            return self.b(F.adaptive_avg_pool2d(torch.relu(self.a(x)), 1).squeeze())

    given, couplings = analysed(Squeeze(), torch.randn(2, 3, 4, 4))
    pruned = given.copy()
    remove_units(pruned, {"a": [0]})
    assert prove(couplings, {"a": [0]}, pruned).error < 1e-6


def test_an_unknown_group_or_unit_is_refused():
    couplings = find_couplings(model("concat"))
    with pytest.raises(UsageError, match="no group"):
        couplings.survivors({"nowhere": [0]})
    with pytest.raises(UsageError, match="no node 8"):
        couplings.survivors({"a": [8]})
    with pytest.raises(UsageError, match="all 8"):
        couplings.survivors({"a": range(8)})


def test_prunable_share_counts_every_parameter_once():
    given, couplings = analysed(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4))
    assert couplings.prunable_share() == pytest.approx((4 * 6 + 6 + 6 * 3) / (4 * 6 + 6 + 6 * 3 + 3))
    assert isinstance(couplings.trace, Trace)
    assert couplings.parameters() == sum(p.numel() for p in given.graph_module.parameters())
