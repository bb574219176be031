import pytest
import torch
from networks import built_once
from records import images
from torch import nn

from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.prune.options import Prune


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


@built_once
def make() -> Model:
    torch.manual_seed(0)
    return Model.from_module(Net().eval(), (torch.randn(2, 4, 8, 8),))


def run(model: Model, **settings):
    each = Prune(**settings)
    each.requires(model, Context())
    changes = each.apply(model, Context())
    each.ensures(model, changes)
    return changes


def test_threshold_is_each_matrix_own_root_mean_square():
    model, before = make(), make()
    run(model, std=0.7)
    for name in ("conv.weight", "head.weight"):
        old = before.tensor(name).detach()
        bound = 0.7 * (old.double().mean() ** 2 + old.double().var(correction=0)).sqrt()
        expected = torch.where(old.abs().double() < bound, 0.0, old)
        torch.testing.assert_close(model.tensor(name).detach(), expected, rtol=0, atol=0)
        assert 0 < (expected == 0).sum() < old.numel()


def test_relative_zeroes_as_many_as_hold_this_share_of_the_squares():
    model, before = make(), make()
    run(model, relative=0.01)
    for name in ("conv.weight", "head.weight"):
        old, new = before.tensor(name).detach().double(), model.tensor(name).detach().double()
        gone = (new == 0) & (old != 0)
        lost = float(old[gone].square().sum() / old.square().sum())
        smallest_left = float(old[~gone].abs().min())
        assert 0 < lost <= 0.01 < lost + smallest_left**2 / float(old.square().sum())
        assert float(old[gone].abs().max()) <= smallest_left
        assert torch.equal(old[~gone], new[~gone])


def test_relative_leaves_equal_and_zero_weights():
    model = make()
    with torch.no_grad():
        model.tensor("conv.weight").fill_(0.5)
        model.tensor("head.weight").zero_()
    assert not any(change.applied for change in run(model, relative=0.5))


def test_biases_and_norms_are_left_alone():
    model, before = make(), make()
    run(model, threshold=1e9)
    assert model.tensor("conv.weight").abs().sum() == 0
    for name in ("conv.bias", "bn.weight", "bn.running_var", "head.bias"):
        assert torch.equal(model.tensor(name), before.tensor(name))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_sparsity_is_exact(sparsity):
    model = make()
    run(model, sparsity=sparsity)
    weights = [model.tensor("conv.weight"), model.tensor("head.weight")]
    total = sum(w.numel() for w in weights)
    assert sum(int((w == 0).sum()) for w in weights) == int(sparsity * total)
    model = make()
    run(model, sparsity=sparsity, scope="layer")
    for name in ("conv.weight", "head.weight"):
        weight = model.tensor(name)
        assert int((weight == 0).sum()) == int(sparsity * weight.numel())


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_sparsity_is_exact_among_equal_magnitudes(scope):
    """Codebook and int8 weights tie by the thousand; a threshold would take them all."""
    model = make()
    with torch.no_grad():
        for name in ("conv.weight", "head.weight"):
            model.tensor(name).copy_(model.tensor(name).sign())
    run(model, sparsity=0.25, scope=scope)
    for name in ("conv.weight", "head.weight"):  # and no layer pays for the others
        weight = model.tensor(name)
        assert abs(int((weight == 0).sum()) - 0.25 * weight.numel()) <= 1


def test_sparsity_takes_the_smallest_of_the_whole_model():
    model, before = make(), make()
    run(model, sparsity=0.5)
    gone, kept = [], []
    for name in ("conv.weight", "head.weight"):
        old, new = before.tensor(name).detach(), model.tensor(name).detach()
        gone.append(old[new == 0].abs())
        kept.append(old[new != 0].abs())
    assert torch.cat(gone).max() <= torch.cat(kept).min()


def test_pattern_keeps_the_two_largest_of_four_inputs():
    model, before = make(), make()
    run(model, pattern="2:4")
    old = before.tensor("head.weight").detach().reshape(3, 2, 4)
    new = model.tensor("head.weight").detach().reshape(3, 2, 4)
    assert torch.equal((new != 0).sum(-1), torch.full((3, 2), 2))
    torch.testing.assert_close(new.abs().sum(-1), old.abs().topk(2, -1).values.sum(-1))
    conv = model.tensor("conv.weight").detach()  # 4 input channels: 2 of 4 in every filter position
    assert torch.equal((conv != 0).sum(1), torch.full((8, 3, 3), 2))


class Wide(nn.Module):
    """Every kind of layer that a pattern meets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        x = torch.relu(self.conv(torch.relu(self.stem(x))))
        x = torch.relu(self.up(self.depthwise(torch.relu(self.grouped(x)))))
        return self.head(x.mean((2, 3)))


@built_once
def wide() -> Model:
    torch.manual_seed(0)
    return Model.from_module(Wide().eval(), (torch.randn(2, 3, 8, 8),))


def in_pattern(weight, dim, n=2, m=4):
    return bool(((weight.movedim(dim, -1).unflatten(-1, (-1, m)) != 0).sum(-1) <= n).all())


@pytest.mark.parametrize("data", [None, images(64)])
def test_a_pattern_is_exact_where_it_fits_and_the_rest_is_told(data):
    model, before = wide(), wide()
    each = Prune(pattern="2:4")
    changes = {c.where: c for c in each.apply(model, Context(data=data))}
    each.ensures(model, list(changes.values()))
    assert {name for name, change in changes.items() if not change.applied} == {"stem", "depthwise"}
    assert changes["stem"].what == "skipped: 3 inputs are no multiple of 4"
    for name, dim in {"conv": 1, "grouped": 1, "up": 0, "head": 1}.items():
        weight = model.tensor(f"{name}.weight").detach()
        assert in_pattern(weight, dim)
        assert 2 * int((weight != 0).sum()) == weight.numel()
        old = before.tensor(f"{name}.weight").detach()
        moved = data is not None and name != "up"
        assert ("make up" in changes[name].what) == moved
        assert torch.equal(weight[weight != 0], old[weight != 0]) != moved
    for name in ("stem", "depthwise"):
        assert torch.equal(model.tensor(f"{name}.weight"), before.tensor(f"{name}.weight"))


def test_with_data_the_pattern_costs_less():
    batch = images(64)
    (x,) = next(batch.batches(64)).inputs
    expected = wide()(x).detach()
    errors = []
    for data in (None, batch):
        model = wide()
        Prune(pattern="2:4").apply(model, Context(data=data))
        errors.append(float((model(x).detach() - expected).norm()))
    assert errors[1] < 0.6 * errors[0]


def test_a_pattern_on_top_of_zeros_keeps_both():
    model, data = wide(), images(32)
    run(model, sparsity=0.7, scope="layer")
    zeros = {name: tensor == 0 for name, tensor in model.state_dict().items() if name.endswith("weight")}
    Prune(pattern="2:4").apply(model, Context(data=data))
    for name, before in zeros.items():
        assert (model.tensor(name)[before] == 0).all()
    assert in_pattern(model.tensor("conv.weight"), 1)
    changes = Prune(pattern="2:4").apply(model, Context(data=data))
    assert not [c for c in changes if c.applied]


def test_a_pattern_that_was_not_reached_is_noticed():
    each, model = Prune(pattern="2:4"), wide()
    changes = each.apply(model, Context())
    with torch.no_grad():
        model.tensor("conv.weight")[0, :, 0, 0] = 1
    with pytest.raises(VerificationError, match="conv"):
        each.ensures(model, changes)


def test_twice_is_once():
    model = make()
    run(model, sparsity=0.5)
    once = {k: v.clone() for k, v in model.state_dict().items()}
    changes = run(model, sparsity=0.5)
    assert not [c for c in changes if c.applied]
    assert all(torch.equal(v, once[k]) for k, v in model.state_dict().items())


def test_exclude_leaves_a_layer_alone():
    model, before = make(), make()
    changes = run(model, threshold=1e9, exclude=("head*",))
    assert torch.equal(model.tensor("head.weight"), before.tensor("head.weight"))
    assert [c.where for c in changes] == ["conv"]


@pytest.mark.parametrize(
    "settings",
    [
        {"std": 0},
        {"std": -1},
        {"sparsity": 1.0},
        {"sparsity": "half"},
        {"pattern": "4:2"},
        {"pattern": "two:four"},
        {"scope": "row"},
        {"scope": "layer"},
        {"scope": "layer", "std": 0.5},
        {"std": 1, "sparsity": 0.5},
        {"threshold": float("nan")},
        {"std": float("inf")},
    ],
)
def test_bad_options_are_refused(settings):
    with pytest.raises(UsageError):
        Prune(**settings)


def test_nan_weights_and_nothing_to_prune_are_refused():
    model = make()
    with torch.no_grad():
        model.tensor("conv.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelFileError, match="conv"):
        run(model, std=0.5)
    with pytest.raises(UsageError, match="no layer"):
        run(make(), std=0.5, exclude=("*",))
