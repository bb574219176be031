"""Residual streams in any axes, and in their principal ones, in which `prune-nodes` cuts them."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from torch import nn

from nncompress.analysis.cost import cost
from nncompress.data import open_data
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes import Change, Context, PruneNodes
from nncompress.passes.invariance.rotation import whichever
from nncompress.passes.invariance.rotation.streams import find_streams
from nncompress.passes.invariance.rotation.turn import PRINCIPAL, SPREAD, Axes, rotate
from nncompress.progress import NullProgress
from tests.passes.invariance.networks import (
    CLASSES,
    D,
    Scaled,
    T,
    Words,
    bare_norm,
    built,
    layer_norm,
    random_axes,
    rms_norm,
)


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
    rotate(model, streams, Axes("", True, False, random_axes), Context())
    assert torch.allclose(model.outputs_of(*x)[0], wanted, atol=1e-5)


def in_few_directions(norm, kept: int, *, tied: bool = False) -> Model:
    """All that is written into the stream lies along `kept` directions, none of them a channel."""
    model = built(Words(norm, tied))
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
    """Less than half of what the same nodes move in plain axes: on average, for models differ."""
    rows = torch.randint(0, CLASSES, (64, T), generator=torch.Generator().manual_seed(0))
    shares = []
    for seed in range(12):
        torch.manual_seed(seed)
        model = in_few_directions(layer_norm, D // 2)
        each, context = model.copy(), Context(data=open_data((rows,), model.inputs))
        options = PruneNodes(ratios=("embed=0.375",), rotate=True)
        changes = options.apply(each, context)
        moved = options.contributions(model, each, changes, (rows,), context)
        plain = PruneNodes(ratios=("embed=0.375",)).contributions(model, each, changes, (rows,), context)
        shares.append(moved["embed"] / plain["embed"])
    assert min(shares) > 0
    assert max(shares) < 0.8
    assert fmean(shares) < 0.5


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_a_table_that_is_the_output_layer_too_is_stored_twice_and_told(norm):
    rows = torch.randint(0, CLASSES, (64, T), generator=torch.Generator().manual_seed(0))
    model = in_few_directions(norm, D // 2, tied=True)
    wanted = model.outputs_of(rows)[0].detach()
    each, context = model.copy(), Context(data=open_data((rows,), model.inputs))
    changes = PruneNodes(ratios=("embed=0.375",), rotate=True).apply(each, context)
    assert any(c.where == "embed" and "stored twice" in c.what and c.applied for c in changes)
    assert any(c.where.startswith("residual stream") and c.applied for c in changes)
    each.refresh()
    assert {name: each.tensor(name).shape for name in ("embed.weight", "head.weight")} == {
        "embed.weight": (CLASSES, 15),
        "head.weight": (CLASSES, 15),
    }
    assert float((each.outputs_of(rows)[0].detach() - wanted).norm() / wanted.norm()) < 0.05
    assert torch.equal(model.outputs_of(rows)[0], wanted)


def test_a_stream_of_which_nothing_goes_stays_as_it_was():
    rows = torch.randint(0, CLASSES, (64, T), generator=torch.Generator().manual_seed(0))
    model = built(Words(layer_norm, tied=True))
    plain, turned = model.copy(), model.copy()
    options = {"ratios": ("blocks.0.up=0.5",)}
    PruneNodes(**options).apply(plain, Context(data=open_data((rows,), model.inputs)))
    changes = PruneNodes(**options, rotate=True).apply(turned, Context(data=open_data((rows,), model.inputs)))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(turned.tensor(name), tensor), name
    skipped = [change.what for change in changes if not change.applied]
    assert sum("none of its channels went" in what for what in skipped) == 2


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_the_budget_of_parameters_is_of_the_model_that_came_in(share):
    rows = torch.randint(0, CLASSES, (64, T), generator=torch.Generator().manual_seed(0))
    model = in_few_directions(layer_norm, D // 2, tied=True)
    each = model.copy()
    PruneNodes(params=share, rotate=True).apply(each, Context(data=open_data((rows,), model.inputs)))
    each.refresh()
    assert cost(each).parameters <= 1.02 * share * cost(model).parameters


class ManyWords(Words):
    """Most of its parameters are the table."""

    def __init__(self) -> None:
        super().__init__(layer_norm)
        self.embed, self.head = nn.Embedding(900, D), nn.Linear(D, 900, bias=False)
        self.head.weight = self.embed.weight


def test_what_would_hold_more_parameters_than_came_in_is_not_kept():
    rows = torch.randint(0, CLASSES, (64, T), generator=torch.Generator().manual_seed(0))
    model = built(ManyWords())
    each, context = model.copy(), Context(data=open_data((rows,), model.inputs))
    changes = PruneNodes(macs=0.8, rotate=True).apply(each, context)
    each.refresh()
    assert cost(each).parameters < cost(model).parameters
    assert any("parameters would be left of" in change.what for change in changes if not change.applied)


def test_a_budget_that_two_tables_cannot_keep_leaves_the_stream_as_it_was():
    rows = torch.randint(0, CLASSES, (64, T), generator=torch.Generator().manual_seed(0))
    model = built(ManyWords())

    def work(each: Model, _context: Context) -> list[Change]:
        if "head.weight" in each.state_dict() and each.tensor("head.weight") is not each.tensor(
            "embed.weight"
        ):
            raise UsageError("prune-nodes: the budget is out of reach")
        return [Change("embed", "cut")]

    context = Context(data=open_data((rows,), model.inputs))
    changes = whichever.with_rotation("prune-nodes", PRINCIPAL, model, context, work)
    assert [change.applied for change in changes] == [False, False, True]
    assert "out of reach" in changes[0].what


def test_progress_counts_the_samples_that_the_axes_are_found_on():
    class Seen(NullProgress):
        def step(self, description: str, done: int, total: int | None) -> None:
            if description == "finding axes":
                steps.append((done, total))

    steps: list[tuple[int, int | None]] = []
    rows = torch.randint(0, CLASSES, (24, T))
    model = built(Words(layer_norm))
    streams, _ = find_streams(model, any_axes=True)
    rotate(model, streams, PRINCIPAL, Context(data=open_data((rows,), model.inputs), progress=Seen()))
    assert steps[-1] == (24, 24)
