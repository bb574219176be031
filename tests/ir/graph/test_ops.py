"""What the tables of kinds say of an op, tried on numbers."""

import pytest
import torch

from nncompress.ir.graph.ops import (
    COPIES,
    DROPOUTS,
    HOMOGENEOUS,
    HOMOGENEOUS_PER_CHANNEL,
    MOVES,
    REORDERS,
    RESHAPES,
)

aten = torch.ops.aten
CALLS = dict.fromkeys(DROPOUTS, (0.5, False))
CALLS |= {f"{kind}_pool{dims}d": ([2] * dims,) for kind in ("max", "avg") for dims in (1, 2, 3)}
CALLS |= {
    "view": ([-1],),
    "_unsafe_view": ([-1],),
    "reshape": ([-1],),
    "permute": ([3, 0, 2, 1],),
    "transpose": (1, 2),
    "select": (1, 2),
}
CALLS |= {"unflatten": (1, [2, -1]), "unsqueeze": (0,), "expand": ([3, 2, 4, 6, 5],), "slice": (1, 1, 3)}
CALLS |= {"upsample_nearest2d": ([12, 11],), "adaptive_avg_pool2d": ([2, 3],)}


def call(name, x):
    packet = getattr(aten, name)
    return getattr(packet, "int" if "int" in packet.overloads() else packet.overloads()[0])(
        x, *CALLS.get(name, ())
    )


def images(name):
    spatial = 1 if "1d" in name else 3 if "3d" in name else 2
    return torch.randn(2, 4, *(6, 5, 7)[:spatial])


@pytest.mark.parametrize("name", sorted(HOMOGENEOUS | HOMOGENEOUS_PER_CHANNEL))
def test_homogeneous_ops_pass_a_scale_of_each_channel_on(name):
    x, scale = images(name), torch.rand(4) + 0.5
    scale_of = lambda y: y * scale.reshape(-1, *[1] * (y.dim() - 2))  # noqa: E731
    torch.testing.assert_close(call(name, scale_of(x)), scale_of(call(name, x)))


@pytest.mark.parametrize("name", sorted(HOMOGENEOUS))
def test_what_is_homogeneous_by_itself_looks_at_single_values(name):
    x = torch.randn(2, 4, 6)
    order = torch.randperm(x.numel())
    moved = call(name, x.flatten()[order].reshape(x.shape))
    torch.testing.assert_close(moved, call(name, x).flatten()[order].reshape(x.shape))


@pytest.mark.parametrize("name", sorted(MOVES))
def test_moves_give_values_of_their_operand(name):
    x = torch.randn(2, 4) if name == "t" else torch.randn(2, 4, 6, 5)
    assert torch.isin(call(name, x), x).all()


@pytest.mark.parametrize("name", sorted(COPIES | RESHAPES))
def test_copies_and_reshapes_keep_the_order(name):
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(call(name, x).flatten(), x.flatten())


@pytest.mark.parametrize("name", sorted(REORDERS))
def test_reorders_keep_every_value_and_not_the_order(name):
    x = torch.randn(2, 4) if name == "t" else torch.randn(2, 4, 6, 5)
    moved = call(name, x).flatten()
    assert torch.equal(moved.sort().values, x.flatten().sort().values)
    assert not torch.equal(moved, x.flatten())
