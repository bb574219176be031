"""Residual streams in other axes: the function stays, outliers go, and what cannot be turned is said."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nncompress.data import open_data
from nncompress.ir import Model
from nncompress.ir.graph.verify import drift
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, Quantize
from nncompress.passes.invariance.rotation import whichever
from nncompress.passes.invariance.rotation.orthogonal import orthogonal
from nncompress.passes.invariance.rotation.streams import find_streams
from nncompress.passes.invariance.rotation.turn import SPREAD, Axes, rotate
from nncompress.passes.invariance.rotation.whichever import turned_alike
from tests.passes.invariance.networks import (
    CLASSES,
    NETWORKS,
    D,
    T,
    Words,
    built,
    layer_norm,
    random_axes,
)


@pytest.mark.parametrize("width", [1, 2, 7, 24, 128])
def test_the_matrix_is_orthogonal_and_keeps_the_mean(width):
    turn = orthogonal(width, 0)
    assert torch.allclose(turn @ turn.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(turn.sum(1), torch.ones(width, dtype=torch.float64))
    assert not torch.equal(turn, orthogonal(width, 1)) or width < 3
    if width == 128:  # one channel becomes all: nearly as evenly as can be
        assert float(turn.square().max(1).values.median()) < 2 / width


@pytest.mark.parametrize("axes", [SPREAD, Axes("", True, False, random_axes)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_every_matrix_of_the_stream_turns(name, axes):
    model = built(NETWORKS[name]())
    x = model.example_inputs(4, 1)
    before = {layer.name: layer.weight.value().clone() for layer in layers(model)}
    wanted = model.outputs_of(*x)[0]
    streams, reasons = find_streams(model, any_axes=axes.any_axes)
    assert [stream.width for stream in streams] == [D]
    assert not reasons
    rotate(model, streams, axes, Context())
    assert torch.allclose(model.outputs_of(*x)[0], wanted, atol=1e-5)
    for layer in layers(model):
        assert not torch.equal(layer.weight.value(), before[layer.name]), layer.name


class AddedAfter(Words):
    """Norms behind the additions, as in BERT: the next addition reads them."""

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block.norm(x + block.down(F.gelu(block.up(x))))
        return self.head(x)


class Gated(Words):
    def forward(self, ids):
        return self.head(self.norm(self.blocks(torch.tanh(self.embed(ids)))))


class Sorted(Words):
    """One channel of the stream is read by itself."""

    def forward(self, ids):
        x = self.blocks(self.embed(ids))
        return self.head(self.norm(x)) * torch.softmax(x, -1).amax(-1, keepdim=True)


class Penalised(Words):
    """A weight of the stream is read by itself."""

    def forward(self, ids):
        return super().forward(ids), self.blocks[0].down.weight.pow(2).sum(1)


class Rounded(Words):
    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.embed(ids)).to(torch.int32).float()))


class NormedAlike(Words):
    """One norm is called twice."""

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.blocks[0].down(F.gelu(self.blocks[0].up(self.norm(x))))
        return self.head(self.norm(x))


class Weighed(Words):
    """What the stream takes up is scaled by channel, behind the norm."""

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.norm(x + self.blocks[0].norm.bias * self.blocks[0].down(self.blocks[0].up(x))))


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (Words(layer_norm, tied=True), "products with weights of their own"),
        (AddedAfter(layer_norm), "products with weights of their own"),
        (Gated(layer_norm), "tanh"),
        (Sorted(layer_norm), "softmax"),
        (Penalised(layer_norm), "pow in blocks.0.down reads blocks.0.down.weight by itself"),
        (Rounded(layer_norm), "rounds it to int32"),
        (NormedAlike(layer_norm), "layer norm in norm has no scales in float32 of its own"),
        (Weighed(layer_norm), "own read a product in blocks.0.norm"),
    ],
)
def test_why_a_stream_is_not_turned(net, told):
    model = built(net)
    streams, reasons = find_streams(model)
    assert not streams
    assert told in "".join(reasons.values())
    context = Context()
    changes = Quantize(mode="weights", rotate=True).apply(model, context)
    skipped = [change for change in changes if change.where.startswith("residual stream")]
    assert told in skipped[0].what
    assert not skipped[0].applied


def test_a_norm_that_takes_a_channel_out_keeps_the_stream_as_it_is():
    net = Words(layer_norm)
    model = built(net)
    with torch.no_grad():
        model.tensor("norm.weight")[3] = 0
    assert "almost 0" in "".join(find_streams(model)[1].values())


def with_outliers() -> Model:
    """Four channels that norms make a hundred times larger, at no change of the function."""
    net = Words(layer_norm)
    model = built(net)
    at = torch.tensor([1, 6, 9, 12])
    with torch.no_grad():
        for block in ("blocks.0", "blocks.1"):
            for norm, read in (("before", ("q", "k", "v")), ("norm", ("up",))):
                for part in ("weight", "bias"):
                    model.tensor(f"{block}.{norm}.{part}")[at] *= 100
                for layer in read:
                    model.tensor(f"{block}.{layer}.weight")[:, at] /= 100
    return model


def quantized(model: Model, rows: torch.Tensor, **options) -> tuple[float, list, Context]:
    """How far the outputs are afterwards, the changes, and what was said."""
    each, context = model.copy(), Context(data=open_data((rows,), model.inputs))
    changes = Quantize(**options).apply(each, context)
    wanted = model.outputs_of(rows)
    return drift(each, each.outputs_of(rows), wanted)[0].relative, changes, context


def test_what_errs_less_on_data_is_taken_and_both_are_said():
    rows = torch.randint(0, CLASSES, (24, T), generator=torch.Generator().manual_seed(0))
    options = {"smooth": False}
    plain, _, _ = quantized(with_outliers(), rows, **options)
    error, changes, context = quantized(with_outliers(), rows, **options, rotate=True)
    assert error < plain / 2
    assert any("with the residual stream turned outputs err by" in note for note in context.notes)
    assert [c.where for c in changes if c.what.startswith("turned")] == ["residual stream of embed"]


def test_what_errs_more_is_not(monkeypatch):
    rows = torch.randint(0, CLASSES, (24, T), generator=torch.Generator().manual_seed(0))
    errors = iter([0.01, 0.04])
    monkeypatch.setattr(whichever, "output_error", lambda *_: lambda: next(errors))
    plain, before, _ = quantized(with_outliers(), rows)
    same, changes, context = quantized(with_outliers(), rows, rotate=True)
    assert same == plain
    assert changes[1:] == before
    told = "skipped: turned: its 24 channels are seen in other axes; outputs err by 20.00%, without by 10.00%"
    assert changes[0].what == f"{told}, on every fourth sample"
    assert len(context.notes) == len(set(context.notes))


def test_the_reference_of_each_layers_share_of_the_error_is_turned_alike():
    rows = torch.randint(0, CLASSES, (24, T), generator=torch.Generator().manual_seed(0))
    model = with_outliers()
    each, context = model.copy(), Context(data=open_data((rows,), model.inputs))
    changes = Quantize(smooth=False, rotate=True).apply(each, context)
    turned_alike(model, changes, SPREAD, context)
    wanted = {layer.name: layer.weight.value() for layer in layers(model)}
    for layer in layers(each):
        assert torch.allclose(layer.weight.value(), wanted[layer.name], atol=0.02), layer.name
