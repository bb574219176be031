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
