"""Channels with outliers are scaled before matrix products are rounded; the function stays the same."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress import pipeline
from nncompress.analysis.observe.calibration import RangeRule
from nncompress.analysis.observe.walk import Walk
from nncompress.data import Dataset, open_data
from nncompress.ir import Model
from nncompress.ir.graph.verify import drift
from nncompress.passes import Context, Quantize
from nncompress.passes.quantize.choose import choose, integer_layers
from nncompress.passes.quantize.equalization.smoothing import (
    BATCH,
    Smoothed,
    _Seen,
    smooth,
)

D, T = 16, 5
LARGE = torch.ones(D).index_fill(0, torch.tensor([1, 6, 9, 12]), 100)


def outliers(makes: nn.Module, *reads: nn.Linear, repeat: int = 1) -> None:
    """Four channels that are a hundred times larger, at no change of the function."""
    with torch.no_grad():
        for each in (makes.weight, getattr(makes, "bias", None)):
            if each is not None:
                each.mul_(LARGE.reshape(-1, *[1] * (each.dim() - 1)))
        for layer in reads:
            layer.weight.div_(LARGE.repeat(repeat))


class Attention(nn.Module):
    """Outliers in the norm and in the values of a fused projection; keys keep their scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)
        outliers(self.norm, self.qkv)
        with torch.no_grad():
            self.qkv.weight[2 * D :].mul_(LARGE[:, None])
            self.out.weight.div_(LARGE)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 2, D // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


class Grouped(nn.Module):
    """Queries share keys and values; attention and RMS norm are spelt out; a gated perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(LARGE.clone())
        self.q, self.k, self.v = nn.Linear(D, 2 * D), nn.Linear(D, D), nn.Linear(D, D)
        self.out = nn.Linear(2 * D, D)
        self.gate, self.up, self.down = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        with torch.no_grad():
            for layer in (self.q, self.k, self.v):
                layer.weight.div_(LARGE)
        outliers(self.v)
        with torch.no_grad():
            self.out.weight.div_(LARGE.view(2, 1, 8).expand(2, 2, 8).flatten())
        outliers(self.up, self.down)

    def forward(self, x):
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale
        q, k, v = (f(y).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (each[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for each in (k, v))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 3, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class PostNorm(nn.Module):
    """The residual reads the norm too, so that a multiplication takes the scale back; and behind a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, D)
        self.rest = nn.Parameter(1 / LARGE)
        outliers(self.norm, self.up)
        outliers(self.up, self.down)

    def forward(self, x):
        y = self.norm(x)
        return y * self.rest + self.down(F.gelu(self.up(y)))


class Parts(nn.Module):
    """A norm without weights; a relu; windows that are rolled, joined with others, and averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(D, D), nn.Linear(2 * D, D)
        outliers(self.first)
        with torch.no_grad():
            self.second.weight[:, :D].div_(LARGE)
            self.first.weight[:, :4].div_(100)

    def forward(self, x):
        y = F.layer_norm(torch.cat([100 * x[..., :4], x[..., 4:]], -1), (D,))
        y = F.relu(self.first(y)).roll(1, 1)
        return self.second(torch.cat([y, x], -1)).mean(1)


class Features(nn.Module):
    """Inputs in other units: nothing before the first layer could take a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(D, D), nn.Linear(D, D)
        with torch.no_grad():
            self.first.weight[:, :4].div_(100)

    def forward(self, x):
        return self.second(F.silu(self.first(torch.cat([100 * x[..., :4], x[..., 4:]], -1))))


@cache
def built(network: type[nn.Module]) -> tuple[Model, Dataset]:
    torch.manual_seed(0)
    samples = torch.randn(96, T, D)
    model = Model.from_module(network().eval(), (samples[:2],))
    return model, open_data(samples, model.inputs)


def moved(model: Model, original: Model) -> float:
    x = torch.randn(64, T, D, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return drift(model, model.outputs_of(x), original.outputs_of(x))[0].relative


def smoothed(model: Model, data: Dataset) -> Smoothed | None:
    layers = integer_layers(choose(model, ())[0], "static")
    return smooth(model, layers, RangeRule("mse"), 8, Context(data=data))


@pytest.mark.parametrize(
    ("network", "count", "multiplied"),
    [(Attention, 2, 0), (Grouped, 3, 0), (PostNorm, 2, 2), (Parts, 2, 0), (Features, 1, 1)],
)
def test_outliers_are_taken_back_and_the_function_is_the_same(network, count, multiplied) -> None:
    original, data = built(network)
    model = original.copy()
    found = smoothed(model, data)
    assert found is not None
    assert (found.count, found.multiplied) == (count, multiplied)
    assert found.smoothed < found.plain / 5
    assert 0 < moved(model, original) < 1e-5


@pytest.mark.parametrize(("network", "mode"), [(Attention, "static"), (PostNorm, "dynamic")])
def test_planted_outliers_do_not_matter_after_quantize(network, mode) -> None:
    original, data = built(network)
    plain, steps = pipeline.run(
        original, [Quantize(mode=mode, smooth=False, max_drift=0.99)], Context(data=data)
    )
    assert not any("per channel" in note for note in steps[0].notes)
    found, steps = pipeline.run(original, [Quantize(mode=mode, max_drift=0.99)], Context(data=data))
    assert any("held-out samples; --no-smooth leaves them" in note for note in steps[0].notes)
    assert moved(found, original) < 0.03 < 0.06 < moved(plain, original)


def test_without_outliers_in_what_is_free_nothing_is_changed() -> None:
    class Even(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x):
            return self.second(F.gelu(self.first(x)))

    original, data = built(Even)
    model = original.copy()
    assert smoothed(model, data) is None
    assert all(torch.equal(a, original.state_dict()[name]) for name, a in model.state_dict().items())


class OneForAll(nn.Module):
    """The same node is query, key and value, or both sides of a product."""

    def __init__(self, product: bool) -> None:
        super().__init__()
        self.norm, self.out, self.product = nn.LayerNorm(D), nn.Linear(D, D), product
        with torch.no_grad():
            self.norm.weight[3] = 60

    def forward(self, x):
        y = self.norm(x)
        if self.product:
            return self.out(torch.matmul(y.transpose(1, 2) @ y / 50, y.transpose(1, 2)).transpose(1, 2))
        return self.out(F.scaled_dot_product_attention(y, y, y))


@pytest.mark.parametrize("product", [False, True])
def test_what_is_query_and_value_at_once_keeps_its_scale(product) -> None:
    torch.manual_seed(0)
    samples = torch.randn(96, T, D)
    original = Model.from_module(OneForAll(product).eval(), (samples[:2],))
    model = original.copy()
    smoothed(model, open_data(samples, model.inputs))
    assert moved(model, original) < 1e-5


@pytest.mark.parametrize(("network", "runs"), [("even", 1), (Attention, 2)])
def test_the_data_is_run_once_where_nothing_is_scaled(network, runs, monkeypatch) -> None:
    """And anew for the ranges where something was; one batch is one run."""
    if network == "even":
        torch.manual_seed(0)
        samples = torch.randn(32, 3, 8, 8)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
        model = Model.from_module(net, (samples[:2],))
        data = open_data(samples, model.inputs)
    else:
        original, data = built(network)
        model = original.copy()
    ran, run = [], Walk.run
    monkeypatch.setattr(Walk, "run", lambda *given, **named: ran.append(1) or run(*given, **named))
    Quantize().apply(model, Context(data=data, limit=32))
    assert len(ran) == runs


def test_rows_do_not_depend_on_how_many_samples_come_at_a_time() -> None:
    values = torch.randn(160, T, D)
    apart, together = _Seen(most=40, batch=BATCH), _Seen(most=40, batch=64)
    for batch in values.split(BATCH):
        apart.add(batch)
    for batch in values.split(64):
        together.add(batch)
    assert torch.equal(apart.largest, together.largest)
    assert all(map(torch.equal, apart.halves(), together.halves()))
    assert len(apart.halves()[0]) == 40
