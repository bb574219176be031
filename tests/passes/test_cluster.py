import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.errors import ModelFileError, UsageError
from nncompress.export import write
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.passes import Context
from nncompress.passes.cluster import Cluster


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3)
        self.bn = nn.BatchNorm2d(32)
        self.wide = nn.Conv2d(32, 64, 3)
        self.head = nn.Linear(64, 60)

    def forward(self, x):
        return self.head(F.relu(self.wide(F.relu(self.bn(self.conv(x))))).mean((2, 3)))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model.from_module(Net().eval(), (torch.randn(2, 3, 8, 8),))


def run(model: Model, **options):
    step = Cluster(**options)
    step.requires(model, Context())
    changes = step.apply(model, Context())
    step.ensures(model, changes)
    return changes


@pytest.mark.parametrize("size", [2, 16, 200])
def test_at_most_k_values_each_weight_at_its_nearest(model, size):
    before = model.tensor("wide.weight").detach().clone()
    changes = run(model, codebook=size)
    assert [c.where for c in changes if c.applied] == ["conv", "wide", "head"]
    after = model.tensor("wide.weight").detach()
    book = torch.unique(after)
    assert len(book) == size
    distance = (before.flatten()[:, None] - book).abs().min(1).values
    torch.testing.assert_close((before - after).abs().flatten(), distance, rtol=0, atol=1e-7)
    mse = float((before - after).double().square().mean())
    assert changes[1].numbers["mse"] == pytest.approx(mse)
    assert not [c for c in run(model, codebook=size) if c.applied]


def test_pruned_connections_stay_exactly_zero(model):
    weight = model.tensor("wide.weight")
    with torch.no_grad():
        weight[weight.abs() < weight.abs().median()] = 0
    zeros = (weight == 0).clone()
    run(model, codebook=4)
    assert torch.equal(model.tensor("wide.weight") == 0, zeros)
    assert len(torch.unique(model.tensor("wide.weight"))) == 4


def test_decimals_round_and_say_so_when_nothing_changes(model):
    before = model.tensor("head.weight").detach().clone()
    run(model, decimals=2, exclude=("conv",))
    torch.testing.assert_close(model.tensor("head.weight").detach(), (before * 100).round() / 100)
    assert [c.what for c in run(model, decimals=2, exclude=("conv",))][1:] == [
        "left: rounding does not change it"
    ] * 2


def test_files_shrink_and_compute_the_same(model, tmp_path):
    dense, small = tmp_path / "dense.onnx", tmp_path / "small.onnx"
    write(model, dense)
    run(model, codebook=16)
    write(model, small)
    write(model, tmp_path / "small.pt2")
    weights = sum(model.tensor(f"{n}.weight").numel() for n in ("conv", "wide", "head"))
    assert dense.stat().st_size - small.stat().st_size > 0.75 * 4 * weights
    x = torch.randn(5, 3, 8, 8)
    session = onnxruntime.InferenceSession(small)
    ours = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    torch.testing.assert_close(ours, model(x).detach(), rtol=1e-4, atol=1e-5)
    loaded = load_model(tmp_path / "small.pt2")
    loaded = getattr(loaded, "model", loaded)
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(loaded.tensor("wide.weight"), model.tensor("wide.weight"))


def test_refusals(model):
    with pytest.raises(UsageError, match="one of"):
        Cluster(decimals=2, codebook=4)
    with pytest.raises(UsageError, match="out of range"):
        Cluster(codebook=1)
    assert Cluster().codebook == 16
    with torch.no_grad():
        model.tensor("head.weight")[0, 0] = float("inf")
    with pytest.raises(ModelFileError, match="head"):
        run(model)
