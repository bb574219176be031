"""What two runtimes may differ by follows from the coarsest numbers anywhere in the graph."""

import pytest
import torch
from torch import nn

from nncompress.analysis.distance.precision import precision_of
from nncompress.ir import Model


class Within(nn.Module):
    """Takes, holds and gives float32, and computes in another type between."""

    def __init__(self, between: torch.dtype) -> None:
        super().__init__()
        self.linear, self.between = nn.Linear(4, 3), between

    def forward(self, x):
        return self.linear(x).to(self.between).tanh().float()


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_what_is_computed_between_counts(precision):
    model = Model.from_module(Within(getattr(torch, precision)).eval(), (torch.randn(2, 4),))
    assert precision_of(model) == precision
