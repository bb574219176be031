"""Norms and convolutions that `run_decompositions` or a trace spelled out are read as the ops they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nncompress
from nncompress.analysis.couplings import find_couplings
from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name


def network(norm: str) -> nn.Module:
    norms = {
        "batch": nn.BatchNorm2d(8),
        "batch, no weights": nn.BatchNorm2d(8, affine=False),
        "batch, no statistics": nn.BatchNorm2d(8, track_running_stats=False),
        "instance": nn.InstanceNorm2d(8, affine=True),
        "group": nn.GroupNorm(4, 8),
        "layer": nn.LayerNorm([8, 6, 6]),
    }
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), norms[norm], nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    for name, tensor in module.state_dict().items():
        if name.startswith("1.") and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return module


NORMS = ["batch", "batch, no weights", "batch, no statistics", "instance", "group", "layer"]


@pytest.mark.parametrize("norm", NORMS)
def test_a_decomposed_program_means_and_prunes_the_same(norm):
    module = network(norm)
    whole = Model.from_module(module, (torch.randn(2, 3, 8, 8),))
    decomposed = Model.from_exported(whole.exported_program().run_decompositions(), inputs=whole.inputs)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(decomposed(x), module(x))
    assert not any(op_name(node).startswith(("native_", "_native")) for node in decomposed.graph.nodes)
    groups, wanted = (
        [(g.name, g.size, len(g.members)) for g in find_couplings(model).groups]
        for model in (decomposed, whole)
    )
    assert groups == wanted
    assert groups[0][1] > 1


def test_a_decomposed_batch_norm_trains_again():
    whole = Model.from_module(network("batch"), (torch.randn(2, 3, 8, 8),))
    decomposed = Model.from_exported(whole.exported_program().run_decompositions(), inputs=whole.inputs)
    x, (name,) = torch.randn(9, 3, 8, 8), [n for n in whole.state_dict() if n.endswith("running_mean")]
    for model in (whole, decomposed):
        model.set_training(True)
        model(x)
        model.set_training(False)
    torch.testing.assert_close(decomposed.tensor(name), whole.tensor(name))


def test_a_norm_without_statistics_takes_the_batch_in_either_mode():
    model = Model.from_module(network("batch, no statistics"), (torch.randn(2, 3, 8, 8),))
    x = torch.randn(9, 3, 8, 8)
    before = model(x)
    for training in (True, False):
        model.set_training(training)
        torch.testing.assert_close(model(x), before)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 8, 3, padding=1), nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1)
        self.c, self.d = nn.Conv2d(1, 4, 3, stride=(2, 1)), nn.ConvTranspose2d(4, 2, 3, groups=2)
        self.e = nn.Conv3d(1, 2, 2, dilation=(1, 2, 1))

    def forward(self, x):
        x = self.b(torch.relu(self.a(x))).unsqueeze(1)
        x = self.d(torch.relu(self.c(x))).mean(1, keepdim=True)
        return self.e(x.unsqueeze(1).expand(-1, -1, 3, -1, -1))


def test_convolutions_have_one_spelling_whoever_wrote_the_graph(tmp_path):
    torch.manual_seed(0)
    module, x = Convolutions().eval(), torch.randn(2, 4, 10)
    whole = Model.from_module(module, (x,))
    decomposed = Model.from_exported(whole.exported_program().run_decompositions(), inputs=whole.inputs)
    torch.jit.trace(module, x).save(tmp_path / "traced.pt")
    traced = nncompress.load(tmp_path / "traced.pt", input="Bx4x10")
    wanted = {(g.name, g.size) for g in find_couplings(whole).groups}
    assert {name.split(".")[-1] for name, _ in wanted} == {"a", "c"}
    for model in (decomposed, traced):
        kinds = [op_name(node) for node in model.graph.nodes if "conv" in op_name(node)]
        assert kinds == ["conv1d", "conv_transpose1d", "conv2d", "conv_transpose2d", "conv3d"]
        assert {(g.name, g.size) for g in find_couplings(model).groups} == wanted
        torch.testing.assert_close(model(x), module(x), rtol=0, atol=0)
