"""Random inputs fit the network: ids have rows in their tables, masks leave something to attend to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nncompress.benchmarking.inputs import random_inputs
from nncompress.ir import InputSpec
from nncompress.loading import load_model, load_module

D = 8
HIDDEN = -torch.inf


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, 2, D, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)

    def forward(self, x, mask):
        return self.layers(x, src_key_padding_mask=mask)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(D, 2, batch_first=True)

    def forward(self, x, mask):
        return self.attend(x, x, x, key_padding_mask=mask)[0]


class Scores(nn.Module):
    """Attention by hand, in which a bool hides values."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(D, D)

    def scores(self, x):
        y = self.project(x)
        return y @ y.mT

    def hidden(self, scores, *hides):
        for mask in hides:
            scores = scores.masked_fill(mask[:, None], HIDDEN)
        return scores.softmax(-1)


class Padded(Scores):
    def forward(self, x, mask):
        return self.hidden(self.scores(x), mask)


class Kept(Scores):
    def forward(self, x, mask):
        return self.hidden(self.scores(x), ~mask)


class EitherWay(Scores):
    """The same mask in both meanings."""

    def forward(self, x, mask):
        return self.hidden(self.scores(x), mask) + self.hidden(self.scores(x), ~mask)


class KeptAndPadded(Scores):
    def forward(self, x, keep, pad):
        return self.hidden(self.scores(x), ~keep, pad)


ALL_TRUE, ALL_FALSE, BOTH = (1, 2), (0, 1), (0, 2)
ONE = f"x:Bx5x{D},mask:Bx5:bool"
MASKED = [
    (Encoder, ONE, [ALL_FALSE]),
    (Attention, ONE, [ALL_FALSE]),
    (Padded, ONE, [ALL_FALSE]),
    (Kept, ONE, [ALL_TRUE]),
    (EitherWay, ONE, [BOTH]),
    (KeptAndPadded, f"x:Bx5x{D},keep:Bx5:bool,pad:Bx5:bool", [ALL_TRUE, ALL_FALSE]),
]


def masks_of(model) -> list[tuple[int, int]]:
    outputs = model.outputs_of(*model.example_inputs(3))
    assert all(each.isfinite().all() for each in outputs)
    drawn = random_inputs(model.inputs, 3, 0)
    for spec, ours, timed in zip(model.inputs, model.example_inputs(3), drawn, strict=True):
        assert spec.dtype != "bool" or torch.equal(ours, torch.from_numpy(timed))
    return [(spec.low, spec.high) for spec in model.inputs if spec.dtype == "bool"]


@pytest.mark.parametrize(("network", "stated", "masks"), MASKED)
def test_masks_are_drawn_such_that_a_network_gives_numbers(network, stated, masks) -> None:
    told: list[str] = []
    model = load_module(network().eval(), input_shapes=stated, notice=told.append)
    assert masks_of(model) == masks
    assert model.agreement is not None
    assert model.agreement < 1e-5
    assert not any("not compared" in line or "NaN" in line for line in told)


def test_masks_of_an_exported_program_too(tmp_path) -> None:
    """It keeps no examples: the graph is asked."""
    example = torch.randn(2, 5, D), torch.zeros(2, 5, dtype=torch.bool)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Padded().eval(), example, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, tmp_path / "padded.pt2")
    told: list[str] = []
    model = load_model(tmp_path / "padded.pt2", notice=told.append)
    assert masks_of(model) == [ALL_FALSE]
    assert model.agreement is not None
    assert not any("not compared" in line for line in told)


def test_masks_that_are_given_come_first() -> None:
    mask = torch.tensor([[False, True, True], [False, False, True]])
    model = load_module(Padded().eval(), example_inputs=(torch.randn(2, 3, D), mask))
    assert masks_of(model) == [BOTH]
    model = load_module(Padded().eval(), example_inputs=(torch.randn(2, 3, D), torch.ones_like(mask)))
    assert masks_of(model) == [ALL_FALSE]  # with those that were given it gives no numbers


@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_a_flag_of_which_nothing_is_known_is_true(shape) -> None:
    (flag,) = random_inputs([InputSpec("flag", "bool", shape)], 1, 0)
    assert flag.shape == shape
    assert flag.all()


# --- ids ----------------------------------------------------------------------------------------------------


class Tables(nn.Module):
    sizes = 100, 4

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Embedding(rows, D) for rows in self.sizes)

    def forward(self, ids, kind):
        return self.a(ids) + self.b(kind)


class Turned(Tables):
    sizes = 4, 100


class Offset(Tables):
    def forward(self, ids, kind):
        return self.a(ids + 3) + self.b(kind - 1)


class Counted(Tables):
    def forward(self, ids, kind):
        return self.a(2 * ids) + self.b(3 - kind)


class Hashed(Tables):
    def forward(self, ids, kind):
        return self.a(ids) + self.b(kind % 4)


class Rows(Tables):
    """Tables that are no embeddings."""

    def forward(self, ids, kind):
        return self.a.weight[ids] + self.b.weight.index_select(0, kind.flatten()).view(*kind.shape, D)


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.EmbeddingBag(100, D), nn.EmbeddingBag(4, D)

    def forward(self, ids, kind):
        return self.a(ids) + self.b(kind)


class Fields(nn.Module):
    """One table for columns that each begin elsewhere in it."""

    def __init__(self) -> None:
        super().__init__()
        sizes = torch.tensor([10, 20, 30])
        self.table = nn.Embedding(60, D)
        self.register_buffer("begins", sizes.cumsum(0) - sizes)

    def forward(self, ids):
        return self.table(ids + self.begins)


class OneHot(nn.Module):
    """Without a table: each number is told from all others, as JAX writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(100, D), nn.Linear(4, D)

    def forward(self, ids, kind):
        told = [
            (each.unsqueeze(-1) == torch.arange(layer.in_features)).float()
            for each, layer in ((ids, self.a), (kind, self.b))
        ]
        return self.a(told[0]) + self.b(told[1])


class Special(Tables):
    """A few ids are looked for beside their table."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("special", torch.tensor([2, 3]))

    def forward(self, ids, kind):
        special = (ids.unsqueeze(-1) == self.special).any(-1, keepdim=True)
        return self.a(ids) * (~special) + self.b(kind)


class Places(Tables):
    """The larger table, registered first, is that of positions."""

    def forward(self, ids):
        return self.b(ids) + self.a(torch.arange(ids.shape[1]))


TWO = "ids:Bx6:int64,kind:Bx6:int64"


@pytest.mark.parametrize(
    ("network", "stated", "ranges"),
    [
        (Tables, TWO, [(0, 100), (0, 4)]),
        (Tables, TWO.replace("64", "32"), [(0, 100), (0, 4)]),
        (Turned, TWO, [(0, 4), (0, 100)]),
        (Offset, TWO, [(0, 97), (1, 5)]),
        (Counted, TWO, [(0, 50), (0, 4)]),
        (Rows, TWO, [(0, 100), (0, 4)]),
        (Bags, TWO, [(0, 100), (0, 4)]),
        (OneHot, TWO, [(0, 100), (0, 4)]),
        (Special, TWO, [(0, 100), (0, 4)]),
        (Fields, "Bx3:int64", [(0, 30)]),
        (Places, None, [(0, 4)]),
    ],
)
def test_ids_have_rows_in_the_tables_that_they_reach(network, stated, ranges) -> None:
    told: list[str] = []
    model = load_module(network().eval(), input_shapes=stated, notice=told.append)
    assert [(spec.low, spec.high) for spec in model.inputs] == ranges
    assert model.agreement == 0.0
    assert not any("not compared" in line for line in told)
    edges = [[torch.full_like(x, at) for x, at in zip(model.example_inputs(2), end)] for end in zip(*ranges)]
    last = [x - 1 for x in edges[1]]
    for inputs in (edges[0], last):
        assert model.outputs_of(*inputs)[0].isfinite().all()


def test_ids_that_wrap_may_be_any() -> None:
    model = load_module(Hashed().eval(), input_shapes=TWO)
    ids, kind = model.inputs
    assert (ids.low, ids.high) == (0, 100)
    assert kind.high > 4
    assert model.agreement == 0.0
