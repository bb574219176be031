"""Recurrent layers and cells in a `.pte`: ExecuTorch compiled GRUs, and did not run them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nncompress import as_passes, extras, pipeline
from nncompress.exporting import write
from nncompress.exporting.lower.xnnpack.rewrite import lower_xnnpack
from nncompress.ir import Model
from nncompress.ir.graph.ops import RECURRENT, op_name
from nncompress.passes import Context
from nncompress.runtimes import open_artifact


class Layers(nn.Module):
    """Several layers, both directions, a projection, no biases, the states given and returned."""

    def __init__(self, batch_first: bool):
        super().__init__()
        self.first = nn.LSTM(4, 6, 2, batch_first=batch_first, bidirectional=True, proj_size=3)
        self.second = nn.GRU(6, 5, 2, batch_first=batch_first, bidirectional=True, bias=False)
        self.third = nn.RNN(10, 7, batch_first=batch_first, nonlinearity="relu")
        self.last = nn.RNN(7, 3, batch_first=batch_first)

    def forward(self, x, state):
        y, (h, c) = self.first(x, (state.mT[..., :3, :].mT, state))
        y, n = self.second(y)
        y, _ = self.last(self.third(y)[0])
        return y, h.sum(0), c.sum(0), n.sum(0)


class Steps(nn.Module):
    """A fused layer and a cell."""

    def __init__(self):
        super().__init__()
        self.fused, self.cell = nn.GRU(4, 5, batch_first=True), nn.GRUCell(5, 3)

    def forward(self, x):
        y, h = self.fused(x)[0], x.new_zeros(x.shape[0], 3)
        for step in range(x.shape[1]):
            h = self.cell(y[:, step], h)
        return h


@pytest.mark.parametrize("batch_first", [True, False])
def test_steps_compute_what_layers_do(batch_first):
    torch.manual_seed(0)
    net = Layers(batch_first).eval()
    x, state = torch.randn(*((1, 3) if batch_first else (3, 1)), 4), torch.randn(4, 1, 6)
    lowered = lower_xnnpack(Model.from_module(net, (x, state), dynamic_batch=False))
    assert not {op_name(node) for node in lowered.graph.nodes} & (RECURRENT | {"chunk", "split"})
    for got, expected in zip(lowered.outputs_of(x, state), net(x, state), strict=True):
        torch.testing.assert_close(got, expected.detach())


@pytest.mark.skipif(not extras.installed("mobile"), reason="executorch is not installed")
def test_gated_units_run_at_every_batch(tmp_path):
    torch.manual_seed(0)
    net = Steps().eval()
    write(Model.from_module(net, (torch.randn(2, 2, 4),)), tmp_path / "m.pte")
    runner = open_artifact(tmp_path / "m.pte")
    for batch in (1, 3, 40):
        x = torch.randn(batch, 2, 4)
        np.testing.assert_allclose(runner.run(x)[0], net(x).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_called_twice_and_rounded_when_it_runs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(4, 5, batch_first=True)

        def forward(self, x):
            return self.layer(x)[0] + self.layer(x.flip(1))[0]

    torch.manual_seed(0)
    model = Model.from_module(Twice().eval(), (torch.randn(2, 6, 4),))
    model, _ = pipeline.run(model, as_passes("quantize:mode=dynamic"), Context())
    x = torch.randn(3, 6, 4)
    lowered = lower_xnnpack(model)  # which does not round what a layer reads
    torch.testing.assert_close(lowered(x), model(x), rtol=0, atol=0.02)
