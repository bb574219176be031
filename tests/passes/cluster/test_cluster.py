import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.rounding.kmeans import codebook, nearest
from nncompress.errors import ModelFileError, UsageError
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.ir.formats.deflate import encode
from nncompress.ir.formats.packed import smallest
from nncompress.loading import load_model
from nncompress.passes import Context
from nncompress.passes.cluster.codebooks import Codebooks
from nncompress.passes.cluster.options import Cluster


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


@pytest.mark.parametrize(
    ("relative", "sizes"), [(0.2, (4, 4, 4)), (0.02, (16, 16, 16)), (1e-3, (256, 256, 256))]
)
def test_the_fewest_values_that_lose_little_enough(model, relative, sizes):
    before = {c: model.tensor(f"{c}.weight").detach().double() for c in ("conv", "wide", "head")}
    run(model, relative=relative)
    for size, (name, old) in zip(sizes, before.items(), strict=True):
        new = model.tensor(f"{name}.weight").detach().double()
        assert len(torch.unique(new)) == size
        assert float((new - old).square().sum() / old.square().sum()) <= relative
        fewer = Codebooks.fit(
            old, torch.zeros(old.shape, dtype=torch.int64), {4: 2, 16: 4, 256: 16}[size], None
        )
        lost = fewer.nearest(old, torch.zeros(old.shape, dtype=torch.int64)) - old
        assert float(lost.square().sum() / old.square().sum()) > relative


def test_a_bound_that_no_codebook_meets_or_that_saves_nothing_leaves_the_weight(model):
    assert {c.where: c.what for c in run(model, relative=1e-9)}["wide"].startswith(
        "skipped: 256 values would lose"
    )
    few = Model.from_module(nn.Linear(20, 15).half(), (torch.randn(2, 20).half(),))
    (change,) = run(few, relative=1e-4)
    assert not change.applied
    assert "no fewer bytes" in change.what


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [{"codebook": 8}, {"decimals": 1}])
def test_a_weight_of_any_float_dtype(dtype, options):
    torch.manual_seed(0)
    net = nn.Linear(12, 10).to(dtype)
    each = Model.from_module(net, (torch.randn(2, 12, dtype=dtype),))
    (change,) = run(each, **options)
    assert change.numbers["bytes_before"] == 120 * dtype.itemsize
    assert len(torch.unique(each.tensor("weight"))) <= 12
    assert not [c for c in run(each, **options) if c.applied]


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
        "skipped: rounding does not change it"
    ] * 2


def test_one_value_has_no_entropy(model):
    context = Context()
    changes = Cluster(decimals=0).apply(model, context)
    assert {change.numbers["entropy_bytes"] for change in changes} == {0.0}
    assert changes[0].what.startswith("1 value, 3,456 → ")
    assert "times" not in context.notes[0]


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


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
@pytest.mark.parametrize("size", [4, 16, 256])
def test_entries_are_as_short_as_their_number_allows(scale, size):
    """Rounded to few digits where half precision has the range for them; the error hardly grows."""
    generator = torch.Generator().manual_seed(size)
    weight = scale * torch.randn(64, 32, 3, 3, generator=generator)
    books = Codebooks.fit(weight, torch.zeros(weight.shape, dtype=torch.int64), size, None)
    values = weight.double().flatten().numpy()
    exact = codebook(values, size)
    lost, least = (
        float(((values - book[nearest(values, book)]) ** 2).sum()) for book in (books.rows[0].numpy(), exact)
    )
    assert lost <= 1.005 * least
    in_half = books.rows.half().double()
    assert torch.equal(in_half, books.rows) == (scale == 1.0)


@pytest.mark.parametrize(("size", "per"), [(2, "tensor"), (4, "tensor"), (16, "tensor"), (4, "channel")])
def test_entropy_coded_within_a_tenth_of_the_entropy(size, per):
    """Of weights with the heavy tails of a trained layer's."""
    torch.manual_seed(1)
    model = Model.from_module(nn.Conv2d(64, 64, 3).eval(), (torch.randn(2, 64, 4, 4),))
    weight = model.tensor("weight")
    with torch.no_grad():
        weight.copy_(torch.distributions.StudentT(6.0).sample(weight.shape))
    (change,) = run(model, codebook=size, per=per)
    counts = [torch.unique(row, return_counts=True)[1] for row in weight.detach().flatten(1)]
    if per == "tensor":
        counts = [torch.unique(weight.detach(), return_counts=True)[1]]
    entropy = sum(float(-(n * (n / n.sum()).log2()).sum()) for n in counts) / 8
    assert change.numbers["entropy_bytes"] == pytest.approx(entropy, rel=1e-5)
    parts = smallest(weight)
    stored = [part.numpy().tobytes() for part in parts.values()]
    assert change.numbers["bytes_after"] == sum(map(len, stored))
    assert change.numbers["bytes_coded"] == sum(min(len(s), len(encode(s))) for s in stored)
    assert change.numbers["bytes_coded"] <= 1.1 * entropy


def test_codebooks_that_cannot_be_are_refused(model):
    with pytest.raises(UsageError, match="one of"):
        Cluster(decimals=2, codebook=4)
    with pytest.raises(UsageError, match="out of range"):
        Cluster(codebook=1)
    with pytest.raises(UsageError, match="one of"):
        Cluster(relative=0.1, codebook=4)
    assert not Cluster(decimals=2).strengths()
    assert [tried.relative for tried in Cluster().strengths()] == [1e-3, 1e-4, 1e-5]
    with torch.no_grad():
        model.tensor("head.weight")[0, 0] = float("inf")
    with pytest.raises(ModelFileError, match="head"):
        run(model)
