"""Ops that ExecuTorch lacks, or computes wrongly, as they are: stored, said in others, or refused."""

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.errors import UnsupportedError
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.runtimes import open_artifact

pytest.importorskip("executorch")


class Computed(nn.Module):
    """Its weight is the exponential of a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))

    def forward(self, x):
        return self.fc(x)


class Tied(nn.Module):
    """What a layer reads as it is, another reads as its transpose, or as another kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 2), nn.Linear(4, 5)

    def forward(self, x):
        h = torch.tanh(self.conv(x))
        y = nn.functional.conv_transpose2d(h, self.conv.weight).flatten(1)
        return nn.functional.linear(torch.tanh(self.fc(y)), self.fc.weight.t())


class Accumulated(nn.Linear):
    def forward(self, x):
        h = super().forward(x)
        return torch.hypot(h, x) + h.cumprod(1) + h.cummax(1).values


@pytest.mark.parametrize("net", [Computed(), Accumulated(4, 4)])
def test_ops_that_the_runtime_lacks_are_stored_or_said_in_others(net, tmp_path):
    x = torch.randn(3, 4)
    write(Model.from_module(net.eval(), (x,)), tmp_path / "m.pte")
    np.testing.assert_allclose(
        open_artifact(tmp_path / "m.pte").run(x)[0], net(x).detach().numpy(), rtol=1e-4, atol=1e-5
    )


def test_a_weight_that_two_kinds_of_layers_read_is_right_in_both(tmp_path):
    """The delegate laid it out for the first of them: wrong figures, or a process that ends."""
    torch.manual_seed(0)
    net = Tied().eval()
    x = torch.randn(3, 1, 2, 2)
    write(Model.from_module(net, (x,)), tmp_path / "m.pte")
    np.testing.assert_allclose(
        open_artifact(tmp_path / "m.pte").run(x)[0], net(x).detach().numpy(), rtol=1e-4, atol=1e-5
    )


def test_a_program_without_a_kernel_is_no_damaged_file(tmp_path):
    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort(1).values

    with pytest.raises(UnsupportedError, match="cannot load it"):
        write(Model.from_module(Sorted(), (torch.randn(2, 4),)), tmp_path / "m.pte")
    assert list(tmp_path.iterdir()) == []


def test_padding_that_wraps_around_runs(tmp_path):
    """ExecuTorch compiled it, and did not run it."""
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular").eval()
    x = torch.randn(2, 3, 6, 5)
    write(Model.from_module(conv, (x,)), tmp_path / "m.pte")
    np.testing.assert_allclose(
        open_artifact(tmp_path / "m.pte").run(x)[0], conv(x).detach().numpy(), rtol=1e-4, atol=1e-5
    )


def test_a_mean_of_a_whole_image_is_written(tmp_path):
    class Mean(nn.Conv2d):
        def forward(self, x):
            h = super().forward(x)
            return h - h.mean() + h.mean(None, keepdim=True)

    net, x = Mean(2, 3, 3).eval(), torch.randn(2, 2, 6, 6)
    write(Model.from_module(net, (x,), dynamic_batch=False), tmp_path / "m.pte")
    (got,) = open_artifact(tmp_path / "m.pte").run(x)
    np.testing.assert_allclose(got, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
