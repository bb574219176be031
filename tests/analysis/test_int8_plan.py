import torch
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.int8_plan import norms_between, plan_activations
from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import layers


def planned(network: nn.Module, *shape: int, without: str = "", **forms: bool):
    model = Model.from_module(network.eval(), (torch.randn(2, *shape),))
    chosen = [layer for layer in layers(model) if layer.name != without]
    plan = plan_activations(model, chosen, **forms)
    return [op_name(n) if n.op == "call_function" else n.op for n in plan.points], plan


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(x + self.b(x))
        return self.b(F.max_pool2d(x, 2))


def test_residual_stays_in_int8_and_clamps_are_absorbed():
    points, plan = planned(Residual(), 4, 8, 8)
    assert points == ["placeholder", "relu", "conv2d", "relu", "max_pool2d", "conv2d"]
    (pool,) = [n for n in plan.points if op_name(n) == "max_pool2d"]
    assert plan.same_qparams == {pool: pool.args[0]}


def test_a_convolution_that_adds_a_branch_is_not_rounded_before():
    points, plan = planned(Residual(), 4, 8, 8, fused_sums=True)
    assert points == ["placeholder", "relu", "relu", "max_pool2d", "conv2d"]
    (total,) = plan.points[2].args
    assert op_name(total) == "add"
    assert total.args[0] is plan.points[1]


def test_a_convolution_that_is_read_elsewhere_does_not_add():
    class Read(Residual):
        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return self.b(a + b) + self.a(a)

    points, _ = planned(Read(), 4, 8, 8, fused_sums=True)
    assert points == ["placeholder", "conv2d", "add", "conv2d", "conv2d"]  # `b`, in its first call, adds `a`


class Branches(nn.Module):
    """Two concatenations that share a branch, one of them behind a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.d, self.e = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        a, b, c = self.a(x), self.b(x), F.max_pool2d(self.c(x), 3, 1, 1)
        return self.d(torch.cat([a, b], 1)) + self.e(torch.cat([b, c], 1))


def test_what_concatenations_join_has_one_grid_where_they_are_joined():
    _, plan = planned(Branches(), 4, 8, 8)
    assert not plan.one_grid
    _, plan = planned(Branches(), 4, 8, 8, joined_concats=True)
    (grid,) = set(plan.one_grid.values())
    assert grid is plan.points[1]  # of the first convolution
    joined = [op_name(node) for node in plan.one_grid]
    assert sorted(joined) == ["cat", "cat", "conv2d", "conv2d", "conv2d", "max_pool2d"]
    assert not plan.same_qparams
    _, plan = planned(Residual(), 4, 8, 8, joined_concats=True)
    assert not plan.one_grid
    assert len(plan.same_qparams) == 1  # a pool by itself keeps what it moves


def test_an_addition_of_something_float_stays_float():
    """`a` is float here; its result is rounded for `b`, and only for the readers that are int8."""
    points, plan = planned(Sum(), 4, 8, 8)
    assert points == ["tanh", "conv2d"]
    assert [op_name(reader) for reader in plan.readers[plan.points[0]]] == ["conv2d"]


class Sum(nn.Module):
    """The second operand was never rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.sigmoid(self.a(torch.tanh(x)) + x) * torch.tanh(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(F.gelu(self.up(y))) + y


def test_transformer_rounds_what_linear_layers_read_and_nothing_else():
    points, plan = planned(Attention(), 5, 8)
    assert points == ["layer_norm", "gelu"]
    norm = plan.points[0]
    assert [op_name(reader) for reader in plan.readers[norm]] == ["linear"]
    assert len(norm.users) == 2  # the residual reads the norm unrounded


def test_linear_chain_rounds_between():
    points, _ = planned(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 4)), 4)
    assert points == ["placeholder", "dropout"]


class Unpadded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.a(F.pad(self.a(x), (1, 1, 1, 1), value=0.7))


def test_padding_with_another_value_than_zero_gets_its_own_grid():
    points, plan = planned(Unpadded(), 3, 6, 6)
    assert points == ["placeholder", "conv2d", "pad", "conv2d"]
    (pad,) = [n for n in plan.points if op_name(n) == "pad"]
    assert pad not in plan.same_qparams


def test_a_clamp_to_a_range_without_zero_is_an_op_of_its_own():
    class Clamped(nn.Module):
        def __init__(self, low, high) -> None:
            super().__init__()
            self.first, self.second, self.bounds = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), (low, high)

        def forward(self, x):
            return self.second(torch.clamp(self.first(x), *self.bounds))

    for bounds, rounded in (((0.1, None), True), ((None, -0.1), True), ((-1.0, 0.5), False), ((0, 6), False)):
        model = Model.from_module(Clamped(*bounds), (torch.randn(2, 3, 4, 4),))
        plan = plan_activations(model, list(layers(model)))
        assert (next(layers(model)).node in plan.points) == rounded


class Gated(nn.Module):
    """An expansion with a squeeze-and-excitation, as in EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
        self.reduce, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x):
        y = F.silu(self.up(x))
        gate = torch.sigmoid(self.expand(F.silu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return F.relu(x + self.down(y * gate))


class Normed(nn.Module):
    """As in ConvNeXt: floats read a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.up = nn.Conv2d(4, 8, 1), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.up(self.norm(self.conv(x).permute(0, 2, 3, 1)))


def test_where_convolutions_give_floats_only_what_integers_read_is_rounded():
    points, _ = planned(Gated(), 4, 6, 6, float_results=True)
    assert points == ["placeholder", "silu", "mean", "silu", "mul"]
    points, _ = planned(Gated(), 4, 6, 6)
    assert points.count("conv2d") == 4
    assert planned(Normed(), 4, 6, 6, float_results=True)[0] == ["placeholder", "layer_norm"]
    assert planned(Normed(), 4, 6, 6)[0] == ["placeholder", "conv2d", "permute", "layer_norm"]
    points, _ = planned(Residual(), 4, 8, 8, float_results=True)
    assert points == ["placeholder", "relu", "conv2d", "relu", "max_pool2d"]


class Norms(nn.Module):
    """Batch norms of an image, of a residual, of a float value, in front of a float op."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))

    def forward(self, x):
        y = self.a(self.norms[0](x))
        y = y + self.b(F.relu(self.norms[1](y)))
        z = self.b(self.norms[2](y.tanh()))
        return self.b(self.norms[4](F.relu(self.norms[3](y)))) + z * torch.sigmoid(self.norms[3](z + y))


def test_batch_norms_between_int8_layers():
    model = Model.from_module(Norms().eval(), (torch.randn(2, 4, 6, 6),))
    found = norms_between(model, list(layers(model)))
    assert [str(node.args[3].target) for node in found] == [f"norms.{i}.running_mean" for i in (1, 3, 4)]
    one = [layer for layer in layers(model) if layer.name == "a"]
    assert norms_between(model, one) == []
