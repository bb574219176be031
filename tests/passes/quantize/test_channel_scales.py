"""Channels that only layers of single channels read get a scale each; the function stays the same."""

import torch
from records import Whole
from torch import nn
from torch.nn import functional as F

from nncompress.data import Batch
from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, Quantize
from nncompress.passes.quantize.equalization import condition
from nncompress.passes.quantize.equalization.channel_scales import scale_channels
from nncompress.passes.quantize.equalization.cross_layer import pairs
from nncompress.progress import NullProgress


def records(shape: tuple[int, ...], count: int = 64) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(7))


def scaled(network: nn.Module, *shape: int) -> tuple[Model, Model, int]:
    model = Model.from_module(network.eval(), (torch.randn(2, *shape),))
    before = model.copy()
    return before, model, scale_channels(model, [(records(shape),)], NullProgress(), None)


def same(before: Model, after: Model, *shape: int) -> None:
    x = torch.randn(5, *shape)
    expected = before(x)
    torch.testing.assert_close(after(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def ranges(layer: nn.Conv2d) -> nn.Conv2d:
    """Its output channels differ in range by a factor of 1000."""
    with torch.no_grad():
        factors = torch.logspace(-1.5, 1.5, layer.out_channels)
        layer.weight.mul_(factors.reshape(-1, 1, 1, 1))
        layer.bias.mul_(factors)
    return layer


class Stream(nn.Module):
    """A residual stream that is padded, concatenated, sliced and pooled, and read one channel at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ranges(nn.Conv2d(3, 8, 3, padding=1))
        self.read = nn.Conv2d(8, 8, 1, groups=8)
        self.branch = ranges(nn.Conv2d(8, 8, 3, padding=1))
        self.wide = nn.Conv2d(24, 24, 3, groups=24, padding=1)
        self.doubled = nn.Conv2d(12, 24, 1, groups=12)
        self.head = nn.Conv2d(48, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(F.relu(self.read(x)))
        x = F.avg_pool2d(x, 2)
        y = torch.cat([F.pad(x, (0, 0, 0, 0, 3, 5)), F.max_pool2d(x, 3, 1, 1)], 1)
        doubled = F.pad(self.doubled(y[:, 1:13, 1:]), (0, 0, 0, 1))
        return self.head(torch.cat([self.wide(F.relu(y)), doubled], 1))


def test_the_function_stays_the_same_through_pads_slices_and_concatenations():
    before, after, count = scaled(Stream(), 3, 12, 12)
    assert count == 8  # every channel of the stream, wherever it goes
    same(before, after, 3, 12, 12)
    stream = {layer.name: layer for layer in layers(after)}
    moved = [
        name for name, layer in stream.items() if not torch.equal(layer.weight.value(), by_name(before, name))
    ]
    assert set(moved) == {"stem", "read", "branch", "wide", "doubled"}, moved


def by_name(model: Model, name: str) -> torch.Tensor:
    return next(layer.weight.value() for layer in layers(model) if layer.name == name)


def test_scaled_channels_are_equally_wide():
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = ranges(nn.Conv2d(3, 16, 3)), nn.Conv2d(16, 16, 3, groups=16)

        def forward(self, x):
            return self.b(F.relu(self.a(x)))

    before, after, count = scaled(Chain(), 3, 9, 9)
    assert count == 16
    same(before, after, 3, 9, 9)
    x = records((3, 9, 9))
    first = next(layer for layer in layers(after) if layer.name == "a")
    values = F.relu(F.conv2d(x, first.weight.value(), first.bias.value()))
    widths = values.movedim(1, 0).flatten(1).std(1, correction=0)
    torch.testing.assert_close(widths, widths.mean().expand_as(widths), rtol=1e-3, atol=0)


def test_channels_that_others_read_keep_their_scale():
    class Watched(nn.Module):
        """A dense convolution, a tanh, a constant, an output, a fixed operand, a shared weight."""

        def __init__(self, how: str) -> None:
            super().__init__()
            self.how = how
            self.a, self.b = ranges(nn.Conv2d(3, 8, 3, padding=1)), nn.Conv2d(8, 8, 3, groups=8, padding=1)
            self.c = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            y = F.relu(self.a(x))
            z = self.b(y)
            if self.how == "dense":
                return z + self.c(y).tanh()
            if self.how == "tanh":
                return z + y.tanh()
            if self.how == "constant":
                return self.b(y + 1.0)
            if self.how == "output":
                return z, y
            if self.how == "clamped":
                return self.b(F.relu6(y))
            return z + self.a(x.tanh()).tanh()

    for how in ("dense", "tanh", "constant", "output", "clamped", "shared"):
        before, after, count = scaled(Watched(how), 3, 6, 6)
        assert count == 0, how
        for layer in layers(before):
            assert torch.equal(layer.weight.value(), by_name(after, layer.name)), how


def test_dead_channels_and_no_data():
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = ranges(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 8, 3, groups=8)
            with torch.no_grad():
                self.a.weight[2:4] = 0
                self.a.bias[2:4] = 0

        def forward(self, x):
            return self.b(self.a(x))

    before, after, count = scaled(Dead(), 3, 8, 8)
    assert count == 6
    same(before, after, 3, 8, 8)
    model = before.copy()
    assert scale_channels(model, [], NullProgress(), None) == 0


class Preactivated(nn.Module):
    """Batch norms that cannot be folded: they read a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ranges(nn.Conv2d(3, 16, 3, padding=1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.deep = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False) for _ in range(2))
        self.point = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(2))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        for norm, deep, point in zip(self.norms, self.deep, self.point):
            x = x + point(deep(F.relu(norm(x))))
        return self.head(F.relu(self.norms[2](x)).mean((2, 3)))


class Noise(Whole):
    def batches(self, batch_size, limit=None, shuffle_seed=None):
        yield Batch((records((3, 12, 12)),), None)


def preactivated() -> Model:
    torch.manual_seed(2)
    network = Preactivated()
    with torch.no_grad():
        for _ in range(20):
            network.train()(records((3, 12, 12)))
    return Model.from_module(network.eval(), (torch.randn(2, 3, 12, 12),))


def error(rounded: Model, model: Model) -> float:
    x = torch.randn(64, 3, 12, 12)
    expected = model(x)
    return float((rounded(x) - expected).norm() / expected.norm())


def test_batch_norms_of_a_stream_run_in_int8_and_lose_nothing_by_it(monkeypatch):
    model = preactivated()
    whole, without = model.copy(), model.copy()
    context = Context(data=Noise())
    Quantize(no_samples=True).apply(whole, context)
    Quantize(keep=("norms*",)).apply(without, Context(data=Noise()))
    assert context.notes == ["3 batch norms run in int8, as 1×1 convolutions of single channels"]
    norms = [sum(op_name(n) == "batch_norm" for n in each.graph.nodes) for each in (whole, without)]
    assert norms == [0, 3]
    monkeypatch.setattr(condition, "scale_channels", lambda *_: 0)
    unscaled = model.copy()
    Quantize().apply(unscaled, Context(data=Noise()))
    assert error(whole, model) < 0.5 * error(without, model) < 0.1
    assert error(unscaled, model) > 5 * error(whole, model)


def test_layers_whose_bias_is_computed_keep_their_weights():
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = ranges(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 8, 3, groups=8)
            self.register_buffer("shift", torch.randn(8))

        def forward(self, x):
            return self.b(F.conv2d(x, self.a.weight, 3 * self.shift))

    before, after, count = scaled(Computed(), 3, 8, 8)
    assert count == 0
    assert pairs(after) == []
    same(before, after, 3, 8, 8)
