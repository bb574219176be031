import torch
from torch import nn

from nncompress import pipeline
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.prune.dead_nodes import remove_dead_nodes
from nncompress.passes.prune.options import Prune


def model_of(module: nn.Module, *shape: int) -> Model:
    return Model.from_module(module.eval(), (torch.randn(2, *shape),))


class Net(nn.Module):
    """Convolution, batch norm, ReLU, then a reader of each kind."""

    def __init__(self, reader: nn.Module, pool: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        with torch.no_grad():
            self.bn.bias.copy_(torch.tensor([0.5, 0.7, -9.0, 0.1, 0.2, 0.3]))
            self.bn.running_mean.normal_(0, 0.1)
        self.reader, self.pool = reader, pool

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return self.reader(x.mean((2, 3)) if self.pool else x)


def unchanged(before: Model, after: Model, *shape: int) -> None:
    x = torch.randn(5, *shape)
    torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-6)


def kill(model: Model, *channels: int) -> Model:
    with torch.no_grad():
        for channel in channels:
            model.tensor("conv.weight")[channel] = 0
    return model


def test_a_constant_moves_into_the_bias_of_a_linear_reader():
    model = kill(model_of(Net(nn.Linear(6, 4), pool=True), 3, 8, 8), 1, 2)
    before = model.copy()
    (change,) = remove_dead_nodes(model)
    assert change.numbers["removed"] == [1, 2]
    assert tuple(model.tensor("conv.weight").shape) == (4, 3, 3, 3)
    unchanged(before, model, 3, 8, 8)


def test_a_reader_without_bias_gets_one():
    model = kill(model_of(Net(nn.Conv2d(6, 4, 3, bias=False), pool=False), 3, 8, 8), 1)
    before = model.copy()
    assert [c.numbers["removed"] for c in remove_dead_nodes(model)] == [[1]]
    unchanged(before, model, 3, 8, 8)


def test_a_padded_reader_keeps_a_constant_that_is_not_zero():
    model = kill(model_of(Net(nn.Conv2d(6, 4, 3, padding=1), pool=False), 3, 8, 8), 1, 2)
    before = model.copy()
    # channel 2's batch norm pushes it below zero, so ReLU makes it 0: that one can go
    assert [c.numbers["removed"] for c in remove_dead_nodes(model)] == [[2]]
    unchanged(before, model, 3, 8, 8)


def test_a_node_that_nobody_reads_goes():
    model = model_of(Net(nn.Conv2d(6, 4, 3, padding=1), pool=False), 3, 8, 8)
    with torch.no_grad():
        model.tensor("reader.weight")[:, 4] = 0
    before = model.copy()
    assert [c.numbers["removed"] for c in remove_dead_nodes(model)] == [[4]]
    unchanged(before, model, 3, 8, 8)


def test_living_nodes_stay():
    model = model_of(Net(nn.Linear(6, 4), pool=True), 3, 8, 8)
    assert remove_dead_nodes(model) == []


def test_a_layer_norm_over_the_nodes_keeps_them():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    with torch.no_grad():
        module[0].weight[2] = 0
    model = model_of(module, 5)
    assert remove_dead_nodes(model) == []


def test_one_unit_is_left_of_a_group_that_died_out():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        module[0].weight.zero_()
    model = model_of(module, 5)
    before = model.copy()
    remove_dead_nodes(model)
    assert tuple(model.tensor("0.weight").shape) == (1, 5)
    unchanged(before, model, 5)


def test_prune_removes_what_it_killed():
    torch.manual_seed(0)
    model = model_of(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3)), 20)
    with torch.no_grad():
        model.tensor("0.weight")[::2] *= 0.01
    sparse, _ = pipeline.run(model, [Prune(threshold=0.05)], Context())
    slim, steps = pipeline.run(model, [Prune(threshold=0.05, remove_dead=True)], Context())
    assert slim.tensor("0.weight").shape[0] <= 32
    assert steps[0].after.macs < steps[0].before.macs
    unchanged(sparse, slim, 20)
