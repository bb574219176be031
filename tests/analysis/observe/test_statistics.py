import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.observe.moments import InputMoments, Moments
from nncompress.analysis.observe.patches import (
    filter_rows,
    input_rows,
    output_rows,
    samples_of,
)
from nncompress.analysis.observe.statistics import ChannelStatistics, observe
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers

LAYERS = {
    "linear": (nn.Linear(6, 5), (4, 3, 6)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 9, 7)),
    "dilated, uneven": (nn.Conv2d(4, 6, (3, 2), (1, 2), (2, 1), (2, 1)), (2, 4, 9, 8)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3), (2, 6, 6, 5)),
    "conv1d": (nn.Conv1d(3, 4, 5, padding="same"), (2, 3, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 3, 4, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_times_weight_is_the_layer(kind):
    module, shape = LAYERS[kind]
    x = torch.randn(shape)
    layer = next(layers(Model.from_module(module.eval(), (x,))))
    rows = input_rows(layer, x)  # [g, n, d]
    weight = module.weight.reshape(rows.shape[0], -1, rows.shape[2])
    ours = (rows @ weight.transpose(1, 2)).transpose(0, 1).reshape(rows.shape[1], -1) + module.bias
    theirs = module(x)
    theirs = theirs if isinstance(module, nn.Linear) else theirs.movedim(1, -1)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=1e-5)


TRANSPOSED = {
    "transposed 1d": (nn.ConvTranspose1d(3, 4, 4, stride=3, padding=1), (2, 3, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (2, 0), (1, 2)), (2, 4, 5, 4)),
    "transposed, grouped": (nn.ConvTranspose2d(6, 4, 3, 2, groups=2, dilation=2), (2, 6, 4, 3)),
}


@pytest.mark.parametrize("kind", [*LAYERS, *TRANSPOSED])
def test_filter_rows_times_filters_is_the_layer_and_filters_become_the_weight_again(kind):
    module, shape = {**LAYERS, **TRANSPOSED}[kind]
    x = torch.randn(shape)
    layer = next(layers(Model.from_module(module.eval(), (x,))))
    rows, filters = filter_rows(layer, x), layer.matrix(module.weight)
    weight = filters.reshape(rows.shape[0], -1, rows.shape[2])
    ours = (rows @ weight.transpose(1, 2)).transpose(0, 1).reshape(rows.shape[1], -1) + module.bias
    theirs = module(x)
    theirs = theirs if isinstance(module, nn.Linear) else theirs.movedim(1, -1)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.from_matrix(filters), module.weight)


def test_rows_of_a_transposed_convolution_are_its_pixels():
    module, x = nn.ConvTranspose2d(6, 4, 3, groups=2), torch.randn(2, 6, 4, 5)
    layer = next(layers(Model.from_module(module, (x,))))
    rows = input_rows(layer, x)
    assert rows.shape == (2, 40, 3)
    torch.testing.assert_close(rows[1, 7], x[0, 3:, 1, 2])


def test_drawn_rows_are_rows_and_differ():
    module, x = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 8, 8)
    layer = next(layers(Model.from_module(module, (x,))))
    every = {tuple(r.tolist()) for r in input_rows(layer, x)[0]}
    drawn = {tuple(r.tolist()) for r in input_rows(layer, x, 20, torch.Generator().manual_seed(1))[0]}
    assert len(drawn) == 20
    assert drawn <= every


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "linear"])
def test_every_row_is_of_the_record_that_it_was_computed_from(name):
    layer, shape = LAYERS[name]
    x = torch.arange(shape[0]).float().reshape(-1, *[1] * (len(shape) - 1)).expand(shape) + 1
    found = next(layers(Model.from_module(layer, (x,))))
    rows = output_rows(found, layer(x))
    numbers = samples_of(found, layer(x), len(x))
    expected = torch.arange(len(x)).repeat_interleave(rows.shape[1] // len(x))
    assert numbers.tolist() == expected.tolist()
    patches = input_rows(found, x)
    assert (patches.amax(2) == expected + 1).all()


def test_moments_over_batches_are_those_of_all_rows():
    x = torch.randn(2, 90, 5) * 0.01 + 1000  # float32 sums of squares would lose the variance
    moments = Moments()
    for part in (slice(0, 40), slice(40, 41), slice(41, 90)):
        moments.add(x[:, part])
    for group in range(2):
        reference = torch.cov(x[group].T.double(), correction=0)
        torch.testing.assert_close(moments.covariance[group], reference, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(moments.mean, x.double().mean(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


def test_input_moments_of_a_model():
    module = Net().eval()
    model = Model.from_module(module, (torch.randn(2, 3, 6, 6),))
    data = [torch.randn(n, 3, 6, 6) for n in (3, 5)]
    found = InputMoments(
        model, {each.name: [each] for each in layers(model)}, [(x,) for x in data], rows=None
    )
    with torch.no_grad():
        x = F.relu(module.a(torch.cat(data)))
        features = F.relu(module.b(x)).mean((2, 3))
    patches = F.unfold(x, 3).transpose(1, 2).reshape(-1, 36)
    torch.testing.assert_close(found["b"].second[0].float(), patches.T @ patches / len(patches))
    torch.testing.assert_close(found["head"].mean[0].float(), features.mean(0))
    assert found["a"].count == 8 * 36


def test_channel_statistics_match_torch():
    module = Net().eval()
    model = Model.from_module(module, (torch.randn(2, 3, 6, 6),))
    data = [torch.randn(n, 3, 6, 6) for n in (3, 5)]
    node = next(n for n in model.graph.nodes if n.name.startswith("relu"))
    statistics = ChannelStatistics(dim=1)
    seen = observe(model, [(x,) for x in data], {node: [statistics.add]})
    with torch.no_grad():
        x = F.relu(module.a(torch.cat(data))).double()
    assert seen == 8
    assert statistics.count == 8 * 36
    torch.testing.assert_close(statistics.mean, x.mean((0, 2, 3)), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(statistics.variance, x.var((0, 2, 3), correction=0), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(statistics.active, (x > 0).sum((0, 2, 3)).double())


def test_nothing_is_run_beyond_the_last_watched_node():
    model = Model.from_module(Net().eval(), (torch.randn(2, 3, 6, 6),))
    first = next(n for n in model.graph.nodes if n.name.startswith("conv2d"))
    shown = []
    wrong = torch.randn(2, 3, 1, 1)  # the second convolution would refuse this size
    observe(model, [(wrong,)], {first: [lambda v: shown.append(v.shape)]})
    assert shown == [(2, 4, 1, 1)]
