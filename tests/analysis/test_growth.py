"""Growth leaves the outputs as they were, on every network, and training reaches the new units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import NETWORKS, inputs, model
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings, remove_units
from nncompress.analysis.growth import Amount, Budget, NewUnits, Wish, grow_proven, grow_step, grow_units
from nncompress.analysis.growth.amounts import behind, new_units
from nncompress.analysis.growth.initial import SILENT
from nncompress.ir import Model
from nncompress.ir.edit.widen import anywhere, repeat_runs
from nncompress.progress import NullProgress


def step(each: Model, wish: Wish, data=None):
    return grow_step(each, wish, data, limit=64, batch_size=16, seed=3, progress=NullProgress())


def every(each: Model, units: int) -> dict[str, list[int]]:
    return {g.name: behind(g, units, split=False) for g in find_couplings(each).groups}


def new_places(grown, name: str) -> Tensor:
    """Bool, in the shape of the grown tensor: what was not there before."""
    tensor = grown.model.tensor(name)
    dims = {d: torch.from_numpy(g.new) for d, g in grown.gathers[name].items()}
    return anywhere(dims, tensor.dim()).expand_as(tensor)


def relative(got, wanted) -> float:
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in zip(got, wanted))


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_and_gradients_arrive(name):
    each = model(name)
    groups = find_couplings(each).groups
    wanted = every(each, 5)
    grown = grow_proven(each, NewUnits(wanted))
    assert not grown.refused
    after = {g.name: g.size for g in find_couplings(grown.model).groups}
    assert after == {g.name: g.size + 5 for g in groups}
    x = inputs(name, 7, seed=9)
    assert relative(grown.model.outputs_of(*x), each.outputs_of(*x)) < 1e-6

    # What was there is there, bit for bit.
    for key, tensor in each.graph_module.named_parameters():
        old = ~new_places(grown, key) if key in grown.gathers else slice(None)
        assert torch.equal(grown.model.tensor(key)[old].reshape(-1), tensor.reshape(-1))

    # The same with batch norm on the batch's own statistics; the gradient of a loss reaches every group.
    for m in (each, grown.model):
        m.set_training(True)
    before, now = (m.outputs_of(*x) for m in (each, grown.model))
    assert relative(now, before) < 1e-5
    sum((o.float() ** 3).sum() for o in now).backward()
    parameters = dict(grown.model.graph_module.named_parameters())
    for group in groups:
        moved = [
            (parameters[m.tensor].grad * new_places(grown, m.tensor)).abs().max()
            for m in group.members
            if m.tensor in parameters
        ]
        assert max(moved) > 1e-6

    # Removing the new units gives the first model back.
    remove_units(grown.model, {g.name: range(g.size, g.size + 5) for g in groups})
    for key, tensor in each.graph_module.named_parameters():
        assert torch.equal(grown.model.tensor(key), tensor), key
    assert relative(grown.model.outputs_of(*x), each.outputs_of(*x)) < 1e-6


@pytest.mark.parametrize(
    ("name", "units"), [("residual", 2), ("depthwise", 9), ("attention", 5), ("flatten", 30)]
)
def test_split_copies_share_and_differ(name, units):
    each = model(name)
    groups = find_couplings(each).groups
    wanted = {g.name: behind(g, units, split=True) for g in groups}
    grown = grow_proven(each, NewUnits(wanted, set(wanted)))
    assert not grown.refused
    x = inputs(name, 5)
    assert relative(grown.model.outputs_of(*x), each.outputs_of(*x)) < 3e-6
    consumers = find_couplings(each).trace.consumers()
    for tensor, dims in grown.gathers.items():
        for dim, gather in dims.items():
            if (tensor, dim) in consumers:
                value = grown.model.tensor(tensor).movedim(dim, 0)
                new = np.flatnonzero(gather.new)[0]
                assert not torch.allclose(
                    value[new], value[np.flatnonzero(gather.source == gather.source[new])[0]]
                )


class Stream(nn.Module):
    """A transformer whose stream is its own: layer norms run over it, and query and key have one head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        y = F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
        return self.head((x + self.out(y)).mean(1))


def stream() -> Model:
    torch.manual_seed(0)
    return Model.from_module(Stream().eval(), (torch.randn(2, 4, 5),))


def test_what_a_layer_norm_runs_over_is_doubled_or_left():
    each = stream()
    x = torch.randn(6, 4, 5)
    odd = step(each, Wish(Amount(by=3)))
    (name,) = odd.left
    assert "norm" in odd.left[name]
    assert odd.added == {n: 3 for n in odd.sizes if n != name}  # inside of the head, too: keys start silent
    twice = step(each, Wish(Amount(factor=2.0)))
    assert twice.added == twice.sizes
    assert twice.copies == {name}
    for grown in (odd, twice):
        assert relative(grown.model.outputs_of(x), each.outputs_of(x)) < 2e-6


def test_a_growth_that_cannot_be_proven_is_left():
    each = model("tied")  # the output layer is the embedding: a copy would count twice
    wish = step(each, Wish(Amount(by=2), init="split"))
    assert set(wish.left) == {"embed"}
    assert "change the outputs" in wish.left["embed"]
    assert wish.added == {"up": 2}


class Autoencoder(nn.Module):
    """Tied weights in and out: silent ones would silence the units' inputs too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 10) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) @ self.weight


def test_units_that_no_gradient_would_reach_are_not_added():
    torch.manual_seed(0)
    each = Model.from_module(Autoencoder().eval(), (torch.randn(2, 10),))
    found = step(each, Wish(Amount(by=2)))
    assert not found.added
    assert "no gradient" in next(iter(found.left.values()))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_grown_recurrent_units_compute_the_same(kind):
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](5, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x)[0][:, -1])

    torch.manual_seed(0)
    each = Model.from_module(Network().eval(), (torch.randn(2, 4, 5),))
    grown = step(each, Wish(Amount(by=3)))
    x = torch.randn(5, 4, 5)
    assert grown.model.tensor("cells.weight_hh_l0").shape[1] == 9
    assert relative(grown.model.outputs_of(x), each.outputs_of(x)) < 1e-6


def test_new_weights_start_as_he_and_xavier_say_and_silent():
    """He before a ReLU, Xavier else; outgoing weights silent; norms neutral; biases 0."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 30, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(30 * 16, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for tensor in (*module[1].parameters(), *module[1].buffers()):
            if tensor.dim():
                tensor.add_(torch.rand_like(tensor))
    each = Model.from_module(module, (torch.randn(2, 3, 8, 8),))
    grown = grow_proven(each, NewUnits(every(each, 400)))
    first, second = (grown.model.tensor(f"{i}.weight").detach() for i in (0, 3))
    assert first[40:].std() == pytest.approx((2 / 27) ** 0.5, rel=0.05)  # fan in 3·3·3
    fans = 440 * 9 + 430 * 9
    assert second[30:].std() == pytest.approx((2 / fans) ** 0.5, rel=0.05)
    assert (second[:30, 40:].abs() <= 10 * SILENT).all()
    assert (second[:30, 40:] != 0).all()
    for key, value in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
        assert (grown.model.tensor(f"1.{key}")[40:] == value).all()
    assert (grown.model.tensor("0.bias")[40:] == 0).all()


def test_runs_are_repeated_behind_themselves():
    gather = repeat_runs(np.array([7, 7, 8, 8, 7, 7]), np.array([2, 2, 1, 1, 2, 2]))
    assert gather.source.tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 4, 5]
    assert gather.new.tolist() == [False, False, True, True, False, False, False, False, True, True]


@pytest.mark.parametrize(("unit", "times"), [("macs", 1.3), ("params", 4.0)])
def test_a_budget_is_nearly_used_and_never_exceeded(unit, times):
    each = model("stages")
    total = {"macs": cost(each).macs, "params": cost(each).parameters}[unit]
    grown = step(each, Wish(Amount(), Budget(**{unit: times * total})))
    after = {"macs": cost(grown.model).macs, "params": cost(grown.model).parameters}[unit]
    assert 0.93 * times * total < after <= times * total


def test_amounts_follow_need():
    each = model("concat")
    couplings = find_couplings(each)
    scores = {"a": 3.0, "b": 1.0, "mix": 2.0}
    assert new_units(each, couplings, scores, Amount(by=8), Budget()) == {"a": 12, "b": 4, "mix": 8}
    assert new_units(each, couplings, {"a": 1.0, "mix": 1.0}, Amount(factor=1.5), Budget()) == {
        "a": 4,
        "mix": 6,
    }
    quarters = Amount(quarter_of=12)
    assert new_units(each, couplings, {"a": 1.0, "mix": 1.0}, quarters, Budget()) == {"a": 3}  # mix has 12
    assert new_units(each, couplings, {"a": 1.0}, Amount(by=5, round_to=4), Budget()) == {"a": 4}


class Labelled:
    """Random records whose labels depend on the second branch of "two-inputs" only."""

    spec = "random records"
    has_labels = True
    fixed_batch = None
    classes = None

    def __init__(self, name: str, labels: bool) -> None:
        self.name, self.has_labels = name, labels

    def planned_samples(self, limit=None):
        return 64

    def batches(self, batch_size, limit=None, shuffle_seed=None):
        from nncompress.data import Batch

        x = inputs(self.name, 64)
        yield Batch(x, x[1][:, :4].argmax(1) if self.has_labels else None)


def test_need_is_seen_where_it_is():
    each = model("two-inputs")
    with torch.no_grad():  # the image says nothing of the labels; what it sends on varies more
        each.tensor("conv.weight").mul_(10)
    labelled = step(each, Wish(Amount(by=4), where="gradient"), Labelled("two-inputs", True))
    assert labelled.scores["fc"] > 1.2 * labelled.scores["conv"] / 10
    spread = step(each, Wish(Amount(by=4), where="std"), Labelled("two-inputs", False))
    assert spread.scores["conv"] > spread.scores["fc"]
    x = inputs("two-inputs", 64)
    reference = F.relu(F.linear(x[1], each.tensor("fc.weight"), each.tensor("fc.bias")))
    assert spread.scores["fc"] == pytest.approx(
        float(reference.detach().std(0, correction=0).mean()), rel=1e-3
    )
    one = step(each, Wish(Amount(by=4), where="std", groups=1), Labelled("two-inputs", False))
    assert set(one.added) == {"conv"}


def test_gradient_need_is_the_gradient_of_candidates():
    """Against plain autograd on a hand-made network with four more hidden units."""
    each = model("two-outputs")
    grown = grow_proven(each, NewUnits({"trunk": [23] * 4}, seed=3))
    x = inputs("two-outputs", 64)[0]

    class Data(Labelled):
        def batches(self, batch_size, limit=None, shuffle_seed=None):
            from nncompress.data import Batch

            yield Batch((x,), torch.arange(64) % 5)

    found = step(each, Wish(Amount(by=1), where="gradient"), Data("two-outputs", True))
    w = grown.model.tensor("classes.weight").detach().clone().requires_grad_()
    hidden = F.relu(F.linear(x, grown.model.tensor("trunk.weight"), grown.model.tensor("trunk.bias")))
    F.cross_entropy(F.linear(hidden, w, grown.model.tensor("classes.bias")), torch.arange(64) % 5).backward()
    wanted = float(w.grad[:, 24:].square().sum() / 4) ** 0.5
    assert found.scores["trunk"] == pytest.approx(wanted, rel=1e-3)


def test_a_folded_weight_grows():
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3, 3, 3))
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
            return self.head(F.relu(F.conv2d(x, w)).mean((2, 3)))

    torch.manual_seed(0)
    each = Model.from_module(Standardised().eval(), (torch.randn(2, 3, 6, 6),))
    grown = each.copy()
    grow_units(grown, NewUnits(every(each, 2)))
    x = torch.randn(4, 3, 6, 6)
    assert relative(grown.outputs_of(x), each.outputs_of(x)) < 1e-6


def test_initial_values_are_drawn_again_until_a_unit_is_alive():
    """Behind features that are all positive a rectifier is on for all inputs or off for all: even chances."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 40), nn.Sigmoid(), nn.Linear(40, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        module[0].weight.mul_(0.01)
    each = Model.from_module(module.eval(), (torch.randn(2, 3),))
    for seed in range(6):
        assert not grow_proven(each, NewUnits({"2": [3]}, seed=100 * seed)).refused


def test_a_layer_without_weights_is_no_obstacle():
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none, self.out = nn.Linear(4, 0), nn.Linear(6, 2)
            self.back, self.beside = nn.Linear(0, 6), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.back(self.none(x)) + self.beside(x)))

    each = Model.from_module(Empty().eval(), (torch.randn(2, 4),))
    grown = grow_proven(each, NewUnits(every(each, 2)))
    assert not grown.refused
    assert grown.model.tensor("out.weight").shape == (2, 8)
