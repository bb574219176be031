"""Networks on which a plausible rule is right for the example and wrong beyond it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import Couplings, ZeroedReference, find_couplings, prove, remove_units
from nncompress.analysis.couplings.proof import distance
from nncompress.ir import Model

DRAWN = torch.full((2, 1, 2), 0.3)  # in place of what the pool would draw


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def analysed(module: nn.Module, *inputs: Tensor, **options) -> tuple[Model, Couplings]:
    model = Model.from_module(module.eval(), inputs, **options)
    return model, find_couplings(model)


def proven(model: Model, couplings: Couplings, removal: dict[str, list[int]]) -> Model:
    pruned = model.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5
    assert proof.effect > 1e-3
    assert couplings.macs(removal) == cost(pruned).macs
    return pruned


def all_but_one(couplings: Couplings) -> dict[str, list[int]]:
    return {g.name: list(range(1, g.size)) for g in couplings.groups}


def sizes(couplings: Couplings) -> dict[str, int]:
    return {g.name: g.size for g in couplings.groups}


def test_positions_that_only_longer_inputs_read_stay():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.position = nn.Embedding(20, 8), nn.Parameter(torch.randn(1, 32, 8))
            self.out = nn.Linear(8, 5)

        def forward(self, ids):
            return self.out(torch.tanh(self.embed(ids) + self.position[:, : ids.shape[1]]))

    dims = ({0: Dim("batch", min=1, max=64), 1: Dim("length", min=2, max=32)},)
    model, couplings = analysed(Positions(), torch.randint(0, 20, (3, 6)), dynamic_shapes=dims)
    assert sizes(couplings) == {"embed": 8}
    removal = {"embed": [1, 4]}
    pruned = proven(model, couplings, removal)
    assert pruned.tensor("position").shape == (1, 32, 6)
    longest = torch.randint(0, 20, (2, 32))
    (wanted,) = ZeroedReference(couplings, removal).run(longest)
    torch.testing.assert_close(pruned(longest), wanted)


@pytest.mark.parametrize("dims", [1, (0, 1), None])
def test_a_squeeze_that_did_nothing_still_does_nothing_on_one_channel(dims):
    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = torch.relu(self.a(x))
            return self.b(y.squeeze() if dims is None else y.squeeze(dims))

    model, couplings = analysed(Squeeze(), torch.randn(2, 3, 5, 5))
    proven(model, couplings, all_but_one(couplings))


@pytest.mark.parametrize(("order", "free"), [(2, True), (1, True), (float("inf"), True), (-1, False)])
def test_a_norm_of_negative_order_sees_zeros(order, free):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.a(x)
            return self.b(x / (0.1 + torch.linalg.vector_norm(x, order, dim=1, keepdim=True)))

    model, couplings = analysed(Normed(), torch.randn(2, 5))
    assert sizes(couplings) == ({"a": 8} if free else {})
    if free:
        proven(model, couplings, {"a": [0, 3, 5]})


def test_zeros_of_a_size_that_grows_with_the_batch_keep_their_heads():
    """`add_zero_attn` puts batch x heads zeros beside the keys: a number that is no literal."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(6, 16)
            self.mha = nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True, add_zero_attn=True)
            self.out = nn.Linear(16, 3)

        def forward(self, x):
            x = self.embed(x)
            return self.out(self.mha(x, x, x, need_weights=False)[0])

    model, couplings = analysed(Attention(), torch.randn(2, 5, 6))
    assert set(sizes(couplings)) == {"embed", "mha.out_proj"}
    proven(model, couplings, {"embed": [0, 5], "mha.out_proj": [1, 2]})


def test_a_recurrent_layer_without_biases_is_counted_and_pruned():
    class Unbiased(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(6, 8, batch_first=True, bias=False)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.gru(x)[0][:, -1])

    model, couplings = analysed(Unbiased(), torch.randn(2, 5, 6))
    assert cost(model).macs == 5 * 3 * 8 * (6 + 8) + 8 * 3
    ((name, size),) = sizes(couplings).items()
    assert size == 8
    proven(model, couplings, {name: [0, 7]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_the_proof_is_as_sharp_in_every_precision(dtype):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 64, dtype=dtype), nn.Linear(64, 48, dtype=dtype)
            self.c = nn.Linear(48, 3, dtype=dtype)

        def forward(self, x):
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    model, couplings = analysed(Net(), torch.randn(2, 6, dtype=dtype))
    assert sizes(couplings) == {"a": 64, "b": 48}
    removal = {"a": list(range(20)), "b": list(range(9))}
    pruned = proven(model, couplings, removal)
    with torch.no_grad():  # a mistake of one part in a hundred is not taken for rounding
        pruned.tensor("c.weight").mul_(1.01)
    assert prove(couplings, removal, pruned).error > 1e-3


def test_distance_sees_imaginary_parts():
    a = torch.tensor([1 + 1j, 2 - 1j])
    assert distance((a.conj().resolve_conj(),), (a,)) == pytest.approx(2 / 5**0.5)


@pytest.mark.parametrize("bits", [torch.int32, torch.int16])
def test_bytes_read_as_another_type_are_no_sizes(bits):
    class Absolute(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = (self.a(x).view(bits) & torch.iinfo(bits).max).view(torch.float32)
            return self.c(self.b(x).relu())

    model, couplings = analysed(Absolute(), torch.randn(2, 5))
    assert sizes(couplings) == {"b": 6}
    proven(model, couplings, {"b": [0, 3]})


@pytest.mark.parametrize(
    ("mask", "free"),
    [
        (lambda x, h: (x[..., :1] > 0).expand_as(h), True),
        (lambda x, h: x[..., :1] > 0, True),
        (lambda x, h: h > 0, False),
        (lambda x, h: (torch.arange(8) < 5).expand_as(h), False),
    ],
    ids=["rows", "broadcast-rows", "elements", "columns"],
)
def test_features_scattered_over_rows_share_their_columns(mask, free):
    """`masked_scatter` takes elements in order: after a column less, others come next but for whole rows."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.p, self.b = nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x)
            return self.b(h.masked_scatter(mask(x, h), self.p(x[..., 2:])).relu())

    model, couplings = analysed(Joined(), torch.randn(2, 4, 5))
    assert sizes(couplings) == ({"a": 8} if free else {})
    if free:
        proven(model, couplings, {"a": [0, 3, 5]})


@pytest.mark.parametrize(
    ("between", "free"),
    [
        (lambda h: h * torch.trace((h.mT @ h)[0]), 0),
        (lambda h: h + torch.trace(h[0, :, :4]), 4),
        (lambda h: torch.segment_reduce(h, "max", lengths=torch.tensor([[1, 3]] * 2), axis=1), 0),
        (lambda h: nn.functional.fractional_max_pool2d(h[:, None], 1, (4, 8), None, False, DRAWN)[:, 0], 0),
    ],
    ids=["trace", "trace-of-a-part", "segment-reduce", "fractional-pool"],
)
def test_an_op_without_a_rule_fixes_what_it_reads_and_nothing_behind_it(between, free):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.b(between(self.a(x))).tanh())

    model, couplings = analysed(Net(), torch.randn(2, 4, 5), dynamic_batch=False)
    assert sizes(couplings) == ({"a": free, "b": 6} if free else {"b": 6})
    proven(model, couplings, {"b": [0, 3]})


def test_biases_per_head_leave_whole_heads():
    """As in Transformer-XL and Conformer: a stored [heads, head size] is added to queries of that grid."""

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 96), nn.Linear(32, 5)
            self.u, self.v = (nn.Parameter(torch.randn(4, 8)) for _ in range(2))

        def forward(self, x):
            q, k, v = self.qkv(x).view(-1, 6, 3, 4, 8).unbind(2)
            near = torch.einsum("bihd,bjhd->bhij", q + self.u, k)
            far = torch.einsum("bihd,bjhd->bhij", q + self.v, k.roll(1, 1))
            return self.out(torch.einsum("bhij,bjhd->bihd", (near + far).softmax(-1), v).flatten(2))

    given, couplings = analysed(Biased(), torch.randn(2, 6, 8))
    assert list(sizes(couplings).values()) == [4]
    proven(given, couplings, {g.name: [0] for g in couplings.groups})


def test_kernels_that_are_mixed_for_each_sample_lose_channels():
    """As many groups as samples: a convolution of a batch that is folded into the channels."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.gate, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), nn.Linear(12, 5)
            self.kernels = nn.Parameter(torch.randn(3, 12, 8, 3, 3))

        def forward(self, x):
            h = self.a(x).relu()
            mix = self.gate(h.mean((2, 3))).softmax(-1)
            kernels = torch.einsum("be,eoihw->boihw", mix, self.kernels).reshape(-1, 8, 3, 3)
            y = nn.functional.conv2d(h.reshape(1, -1, 6, 6), kernels, groups=x.shape[0])
            return self.out(y.view(x.shape[0], 12, 4, 4).mean((2, 3)))

    given, couplings = analysed(Mixed(), torch.randn(2, 3, 8, 8))
    assert sorted(sizes(couplings).values()) == [8, 12]
    proven(given, couplings, {g.name: [0] for g in couplings.groups})


def test_units_are_found_again_when_folded_weights_change_the_names_of_groups():
    class Wavelets(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(16, 4, 1)
            self.register_buffer("h", torch.randn(2, 1, 2, 2))

        def forward(self, x):
            return self.b(nn.functional.conv2d(self.a(x).relu(), self.h.repeat(8, 1, 1, 1), groups=8))

    given, couplings = analysed(Wavelets(), torch.randn(2, 3, 8, 8))
    assert sizes(couplings) == {"a": 8}
    proven(given, couplings, {g.name: [0] for g in couplings.groups})
