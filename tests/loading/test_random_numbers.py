"""A model that draws random numbers is refused when it is loaded, in words of who wrote it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nncompress
from nncompress.cli.app import run
from nncompress.errors import ExitCode, UnsupportedError
from nncompress.loading import load_model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)))


DRAWS = {
    "randn like behind body": lambda h: h + torch.randn_like(h),
    "rand before head": lambda h: h * torch.rand(6),
    "dropout behind body": lambda h: F.dropout(h, 0.5),
    "feature dropout behind body": lambda h: F.dropout1d(h.unsqueeze(-1), 0.5).squeeze(-1),
    "bernoulli behind body": lambda h: h * h.sigmoid().bernoulli(),
    "multinomial behind body": lambda h: h.gather(1, torch.multinomial(h.softmax(1), 6)),
    "exponential behind body": lambda h: F.gumbel_softmax(h),
    "normal behind body": lambda h: h + torch.empty_like(h).normal_(),
    "rrelu behind body": lambda h: F.rrelu(h, training=True),
    "attention behind body": lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None], None, 0.5)[
        0
    ],
}


def drawing(between) -> nn.Module:
    net = Net()
    net.between = between
    return net.eval()


@pytest.mark.parametrize("where", DRAWS)
def test_a_draw_is_refused_by_its_place(where):
    net = drawing(DRAWS[where])
    with pytest.raises(UnsupportedError, match="draws random numbers") as refused:
        nncompress.load(net, input="1x4")
    assert refused.value.got == where
    assert "self.training" in refused.value.remedy


@pytest.mark.parametrize("number", [random.random, lambda: float(np.random.rand())])
def test_a_draw_that_the_export_made_a_constant_is_refused(number):
    with pytest.raises(UnsupportedError, match="other outputs on every run"):
        nncompress.load(drawing(lambda h: h * number()), input="1x4")


def test_the_same_holds_of_an_exported_program(tmp_path, capsys):
    """Exported in training mode: every command says so, in one message."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Dropout(0.1)).train()
    torch.export.save(torch.export.export(net, (torch.randn(2, 4),)), tmp_path / "m.pt2")
    assert run(["inspect", str(tmp_path / "m.pt2")]) == ExitCode.UNSUPPORTED
    told = capsys.readouterr().err
    assert "dropout behind 0 and 1 more" in told
    assert "model.eval()" in told
    assert "Traceback" not in told


def test_what_is_switched_off_or_unused_is_no_draw(tmp_path):
    class Quiet(Net):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 6, 2, dropout=0.5)
            self.drops = nn.Sequential(nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.RReLU(), nn.Dropout1d(0.5))

        def between(self, h: Tensor) -> Tensor:
            torch.randn_like(h)  # nobody reads it
            return self.rnn(self.drops(h).unsqueeze(0))[0].squeeze(0)

    net, x = Quiet().eval(), torch.randn(3, 4)
    model = nncompress.load(net, input="1x4")
    torch.testing.assert_close(model(x), net(x))
    nncompress.export(model, tmp_path / "m.pt2")
    torch.testing.assert_close(load_model(tmp_path / "m.pt2")(x), net(x))
