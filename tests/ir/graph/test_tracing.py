"""Tracing by torch.export: what it cannot do is one message."""

from __future__ import annotations

import pytest
import torch

from nncompress.errors import UnsupportedError
from nncompress.ir import Model


class Branches(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_the_graph_that_torch_had_so_far_is_not_printed(capfd):
    with pytest.raises(UnsupportedError, match="cannot trace"):
        Model.from_module(Branches(), (torch.randn(2, 3),))
    assert capfd.readouterr() == ("", "")


class WritesToParts(torch.nn.Module):
    def forward(self, x):
        y = x * 2
        first, second = torch.unsafe_chunk(y, 2, 1)
        first.sigmoid_()
        second.mul_(first)
        return y


def test_parts_that_are_written_to_keep_the_batch_free():
    module = WritesToParts()
    model = Model.from_module(module, (torch.randn(2, 4),))
    assert "batch" in model.dynamic
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(x), module(x))


class AddsStored(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.past = torch.nn.Buffer(torch.randn(1, 4))

    def forward(self, x):
        return torch.cat([self.past, x], 1)


def test_a_batch_that_the_network_fixes_at_one_stays_one():
    model = Model.from_module(AddsStored(), (torch.randn(1, 4),))
    assert model.inputs[0].shape == (1, 4)


def test_writes_to_data_that_an_export_does_not_see_are_named():
    class Writes(torch.nn.Linear):
        def forward(self, x):
            x = super().forward(x)
            x.data.mul_(2)
            return x

    with pytest.raises(UnsupportedError, match="cannot trace") as refusal:
        Model.from_module(Writes(4, 3).eval(), (torch.randn(2, 4),))
    assert ".data" in refusal.value.remedy
