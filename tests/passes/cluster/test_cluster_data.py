import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.data import open_data
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.cluster.options import Cluster


class Net(nn.Module):
    """A convolution, a depthwise and a transposed one, and a head; inputs of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.up(F.relu(self.depthwise(F.relu(self.conv(x)))))
        return self.head(F.relu(x).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(1)
    return Model.from_module(Net().eval(), (torch.randn(2, 4, 8, 8),))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(2)
    smooth = F.interpolate(torch.randn(64, 4, 3, 3, generator=generator), (8, 8), mode="bilinear")
    return smooth * torch.tensor([5.0, 1.0, 0.2, 0.02])[:, None, None]


@pytest.fixture(scope="module")
def data(model, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, x=images.numpy())
    return open_data(str(path), model.inputs)


def clustered(model, data, **options):
    result = model.copy()
    step, context = Cluster(**options), Context(data=data)
    step.requires(result, context)
    changes = step.apply(result, context)
    step.ensures(result, changes)
    return result, changes


def output_error(model, result, images):
    with torch.no_grad():
        expected = model(images)
        return float((result(images) - expected).norm() / expected.norm())


def test_each_use_of_the_data_lowers_the_output_error(model, data, images):
    def error(**options):
        return output_error(model, clustered(model, data, codebook=16, **options)[0], images)

    plain = error(weighting="none", compensate=False)
    assert error(weighting="inputs", compensate=False) < 0.9 * plain
    assert error(weighting="fisher", compensate=False) < 0.9 * plain
    assert error(weighting="none") < 0.8 * plain
    assert error() < 0.6 * plain
    assert error(per="channel") < 0.8 * error()


def test_decimals_are_compensated_too(model, data, images):
    exact, _ = clustered(model, None, decimals=1)
    with_data, _ = clustered(model, data, decimals=1)
    assert output_error(model, with_data, images) < 0.8 * output_error(model, exact, images)
    weight = with_data.tensor("conv.weight").detach()
    torch.testing.assert_close(weight, (weight * 10).round() / 10)


@pytest.mark.parametrize("with_data", [False, True])
def test_a_codebook_per_output_channel_and_zeros_stay_zero(model, data, with_data):
    pruned = model.copy()
    for name in ("conv", "up", "head"):
        with torch.no_grad():
            weight = pruned.tensor(f"{name}.weight")
            weight[weight.abs() < weight.abs().median()] = 0
    result, changes = clustered(pruned, data if with_data else None, codebook=4, per="channel")
    assert [change.where for change in changes if change.applied] == ["conv", "depthwise", "up", "head"]
    for name, axis in (("conv", 0), ("depthwise", 0), ("up", 1), ("head", 0)):
        before, after = pruned.tensor(f"{name}.weight"), result.tensor(f"{name}.weight").detach()
        assert torch.equal(before == 0, after == 0)
        assert max(len(channel.unique()) for channel in after.movedim(axis, 0)) == 4
    assert len(result.tensor("up.weight").unique()) > 16


def test_without_data_the_books_are_the_weights_own(model):
    result, _ = clustered(model, None, codebook=3, per="channel")
    before, after = (m.tensor("up.weight").detach().movedim(1, 0).flatten(1) for m in (model, result))
    for old, new in zip(before, after):
        book = new.unique()
        assert torch.equal(new, book[(old[:, None] - book).abs().argmin(1)])
        for value in book:  # the mean of what is rounded to it, in log2 K + 3 binary digits
            mantissa, exponent = math.frexp(float(old[new == value].double().mean()))
            assert float(value) == math.ldexp(round(mantissa * 2**5), exponent - 5)


def test_an_embedding_follows_how_often_its_rows_are_read(tmp_path):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Embedding(40, 8), nn.Flatten(), nn.Linear(32, 4))
    model = Model.from_module(net.eval(), (torch.randint(0, 40, (2, 4)),))
    tokens = np.random.default_rng(0).integers(0, 5, (200, 4))  # rows 5 to 39 are never read
    np.savez(tmp_path / "tokens.npz", x=tokens)
    data = open_data(str(tmp_path / "tokens.npz"), model.inputs)
    result, _ = clustered(model, data, codebook=8, exclude=("2",))
    plain, _ = clustered(model, data, codebook=8, exclude=("2",), weighting="none", compensate=False)
    exact = model.tensor("0.weight").detach()[:5]
    lost, lost_plain = ((m.tensor("0.weight").detach()[:5] - exact).square().mean() for m in (result, plain))
    assert lost < 0.7 * lost_plain


def test_weightings_without_data_or_codebook_are_refused(model):
    for options in ({"weighting": "inputs"}, {"weighting": "fisher"}):
        with pytest.raises(UsageError, match="needs data"):
            clustered(model, None, **options)
    with pytest.raises(UsageError, match="no codebook"):
        Cluster(decimals=2, per="channel")
    with pytest.raises(UsageError, match="no codebook"):
        Cluster(decimals=2, weighting="fisher")
    with pytest.raises(UsageError, match="no layer"):
        clustered(model, None, exclude=("hea",))
    for wrong in ({"codebook": 0}, {"codebook": 257}, {"decimals": -1}):
        with pytest.raises(UsageError, match="out of range"):
            Cluster(**wrong)
