"""Units that no activation carries, the states of a kernel that the graph computes, are ranked on data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nncompress

LENGTH, STATES = 6, 8


class Diagonal(nn.Module):
    """A diagonal state space (S4D): a convolution whose kernel is a sum of complex exponentials."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Parameter(torch.randn(4, STATES, 2))
        self.decay = nn.Parameter(torch.rand(4, STATES))
        self.rate = nn.Parameter(torch.rand(4, STATES) * 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 4)
        poles = -torch.exp(self.decay) + 1j * self.rate
        powers = torch.exp(poles.unsqueeze(-1) * torch.arange(LENGTH))
        kernel = torch.einsum("hn,hnl->hl", torch.view_as_complex(self.mixed), powers).real
        spectrum = torch.fft.rfft(kernel, n=2 * LENGTH) * torch.fft.rfft(x.mT, n=2 * LENGTH)
        return self.head(torch.fft.irfft(spectrum, n=2 * LENGTH)[..., :LENGTH].mT.relu().mean(1))


@pytest.mark.parametrize("criterion", ["reconstruction", "taylor", "fisher", "l2"])
def test_the_states_that_give_least_go_first(criterion: str) -> None:
    torch.manual_seed(0)
    net = Diagonal().eval()
    with torch.no_grad():
        net.mixed[:, 1::2] *= 1e-3  # half of them hardly count
    x = torch.randn(32, LENGTH, 4)
    options = f"prune-nodes:ratio=0.5,criterion={criterion},compensate=false"
    small = nncompress.compress(net, [options], data=(x, torch.randint(0, 3, (32,))), notice=lambda _: None)
    assert small.tensor("decay").shape == (4, STATES // 2)
    if criterion != "l2":  # of the decays alone
        fresh = torch.randn(5, LENGTH, 4)
        with torch.no_grad():
            torch.testing.assert_close(small(fresh), net(fresh), atol=0.02, rtol=0)
