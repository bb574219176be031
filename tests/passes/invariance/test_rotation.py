"""Residual streams in other axes: the function stays, outliers go, and what cannot be turned is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.data import open_data
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.graph.verify import drift
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, PruneNodes, Quantize
from nncompress.passes.invariance.rotation import whichever
from nncompress.passes.invariance.rotation.orthogonal import orthogonal
from nncompress.passes.invariance.rotation.streams import find_streams
from nncompress.passes.invariance.rotation.turn import SPREAD, Axes, rotate
from nncompress.passes.invariance.rotation.whichever import turned_alike

D, T, CLASSES = 24, 5, 7


class Scaled(nn.Module):
    """An RMS norm that is spelt out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x):
        wide = x.to(torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    def __init__(self, norm) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm(), nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.q, self.k = nn.Linear(D, D, bias=False), nn.Linear(D, D)
        self.v, self.out = nn.Linear(D, D), nn.Linear(D, D)
        self.before = norm()

    def forward(self, x):
        y = self.before(x)
        x = x + self.out(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Patches(nn.Module):
    """Like a vision transformer: a convolution, a class token, positions; the token or a mean is read."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(1, D, 4, 4), nn.Parameter(torch.randn(1, 1, D))
        self.places = nn.Parameter(torch.randn(1, 5, D))
        self.block, self.norm, self.head = Block(norm), norm(), nn.Linear(D, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = self.norm(self.block(x))
        return self.head(x[:, 0] + x.mean(1))


class Words(nn.Module):
    def __init__(self, norm=nn.LayerNorm, tied=False) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(CLASSES, D), nn.Embedding(T, D)
        self.blocks = nn.Sequential(Block(norm), Block(norm))
        self.norm, self.head = norm(), nn.Linear(D, CLASSES, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids) + self.places(torch.arange(T))
        return self.head(self.norm(self.blocks(x)))


def layer_norm() -> nn.Module:
    return nn.LayerNorm(D)


def bare_norm() -> nn.Module:
    return nn.LayerNorm(D, elementwise_affine=False)


def rms_norm() -> nn.Module:
    return nn.RMSNorm(D)


class Straight(Words):
    """A product reads the stream and writes into it; what a norm made gets another shift."""

    def __init__(self, norm) -> None:
        super().__init__(norm)
        self.own, self.shift = nn.Linear(D, D), nn.Parameter(torch.randn(D))
        self.norm = bare_norm()

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.own(self.blocks[0].before(x))
        return self.head(self.norm(self.blocks[1](x)) + self.shift)


NETWORKS = {
    "layer norms": lambda: Words(layer_norm),
    "rms norms": lambda: Words(rms_norm),
    "spelt out": lambda: Words(Scaled),
    "patches": lambda: Patches(layer_norm),
    "straight": lambda: Straight(layer_norm),
}


def built(net: nn.Module) -> Model:
    torch.manual_seed(0)
    with torch.no_grad():  # scales and shifts differ
        for value in net.parameters():
            if value.dim() == 1:
                value.add_(0.3 * torch.randn(value.shape))
    x = torch.randn(2, 1, 8, 8) if isinstance(net, Patches) else torch.randint(0, CLASSES, (2, T))
    return Model.from_module(net.eval(), (x,))


@pytest.mark.parametrize("width", [1, 2, 7, 24, 128])
def test_the_matrix_is_orthogonal_and_keeps_the_mean(width):
    turn = orthogonal(width, 0)
    assert torch.allclose(turn @ turn.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(turn.sum(1), torch.ones(width, dtype=torch.float64))
    assert not torch.equal(turn, orthogonal(width, 1)) or width < 3
    if width == 128:  # one channel becomes all: nearly as evenly as can be
        assert float(turn.square().max(1).values.median()) < 2 / width


def random_axes(_model, streams, _context):
    """Orthogonal, and whatever becomes of the mean."""
    return [torch.linalg.qr(torch.randn(each.width, each.width).double())[0] for each in streams]


@pytest.mark.parametrize("axes", [SPREAD, Axes("", True, random_axes)])
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
    assert (
        changes[0].what == "skipped: turned, outputs err by 20.00%, without by 10.00%, on every fourth sample"
    )
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


class Lifted(Words):
    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.embed(ids) + 1)))


class NotNormed(Words):
    def __init__(self, norm) -> None:
        super().__init__(norm)
        self.own = nn.Linear(D, CLASSES)

    def forward(self, ids):
        x = self.blocks(self.embed(ids))
        return self.head(self.norm(x)) + self.own(x)


class ShiftedAlike(Words):
    """One tensor is added before a norm and behind it."""

    def __init__(self, norm) -> None:
        super().__init__(norm)
        self.norm, self.shift = bare_norm(), nn.Parameter(torch.randn(D))

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.embed(ids) + self.shift)) + self.shift)


class NormedTwoWays(Words):
    """Centred, the RMS norm would compute something else."""

    def __init__(self) -> None:
        super().__init__(layer_norm)
        self.blocks[1].norm = rms_norm()


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (Lifted(layer_norm), "looks at single channels"),
        (NotNormed(layer_norm), "own reads it without a norm"),
        (ShiftedAlike(layer_norm), "added before a norm and behind it"),
        (NormedTwoWays(), "reads it beside layer norms"),
    ],
)
def test_what_looks_at_the_mean_turns_only_where_that_stays(net, told):
    model = built(net)
    x = model.example_inputs(4, 1)
    wanted = model.outputs_of(*x)[0]
    streams, reasons = find_streams(model, any_axes=True)
    assert not streams
    assert told in "".join(reasons.values())
    streams, _ = find_streams(model)
    assert len(streams) == 1
    rotate(model, streams, SPREAD, Context())
    assert torch.allclose(model.outputs_of(*x)[0], wanted, atol=1e-5)


def test_norms_whose_scales_are_alike_keep_them():
    model = built(Words(layer_norm))
    with torch.no_grad():
        for name, value in model.graph_module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                value.fill_(1.5)
    x = model.example_inputs(4, 1)
    wanted = model.outputs_of(*x)[0]
    streams, _ = find_streams(model, any_axes=True)
    rotate(model, streams, Axes("", True, random_axes), Context())
    assert torch.allclose(model.outputs_of(*x)[0], wanted, atol=1e-5)


def in_few_directions(norm, kept: int) -> Model:
    """All that is written into the stream lies along `kept` directions, none of them a channel."""
    model = built(Words(norm))
    axes = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3)))[0][:, :kept]
    onto = axes @ axes.T
    with torch.no_grad():
        for name in ("embed.weight", "places.weight"):
            model.tensor(name).copy_(model.tensor(name) @ onto)
        for block in ("blocks.0", "blocks.1"):
            for layer in ("out", "down"):
                for part in ("weight", "bias"):
                    tensor = model.tensor(f"{block}.{layer}.{part}")
                    tensor.copy_(onto @ tensor)
    return model


@pytest.mark.parametrize("norm", [layer_norm, rms_norm, Scaled])
def test_prune_nodes_finds_the_directions_that_a_stream_does_not_use(norm):
    rows = torch.randint(0, CLASSES, (64, T), generator=torch.Generator().manual_seed(0))
    model = in_few_directions(norm, D // 2)
    wanted = model.outputs_of(rows)[0].detach()
    errors = {}
    for turned in (False, True):
        each, context = model.copy(), Context(data=open_data((rows,), model.inputs))
        changes = PruneNodes(ratios=("embed=0.375",), rotate=turned).apply(each, context)
        each.refresh()
        assert each.tensor("embed.weight").shape == (CLASSES, 15)
        errors[turned] = float((each.outputs_of(rows)[0].detach() - wanted).norm() / wanted.norm())
    assert errors[True] < 0.05 < errors[False]
    assert [c.where for c in changes if c.what.startswith("turned")] == ["residual stream of embed"]
    assert any("principal axes" in change.what for change in changes)


def test_principal_axes_need_data():
    with pytest.raises(UsageError, match="--rotate finds the axes"):
        PruneNodes(ratio=0.2, rotate=True).requires(built(Words(layer_norm)), Context())


def test_what_a_group_moves_is_told_in_the_axes_that_it_was_cut_in():
    rows = torch.randint(0, CLASSES, (64, T), generator=torch.Generator().manual_seed(0))
    model = in_few_directions(layer_norm, D // 2)
    each, context = model.copy(), Context(data=open_data((rows,), model.inputs))
    options = PruneNodes(ratios=("embed=0.375",), rotate=True)
    changes = options.apply(each, context)
    moved = options.contributions(model, each, changes, (rows,), context)
    plain = PruneNodes(ratios=("embed=0.375",)).contributions(model, each, changes, (rows,), context)
    assert 0 < moved["embed"] < plain["embed"] / 2
