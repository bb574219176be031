"""Modules that compile a part of themselves: refused for what they are, and torch is left as it was."""

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import nncompress
from nncompress.errors import UnsupportedError


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda y: (self.layer(y),), lambda y: (y - 1,), (x,))[0]


class Flexible(nn.Module):
    def forward(self, x):
        return flex_attention(x, x, x)


@pytest.mark.parametrize(
    ("module", "given", "named"),
    [(Conditional(), "2x4", "cond"), (Flexible(), "2x2x16x16", "flex_attention")],
)
def test_what_compiles_itself_is_refused_by_its_name(module, given, named):
    with pytest.raises(UnsupportedError, match=f"uses torch's {named}"):
        nncompress.load(module.eval(), input=given)


def test_after_a_refusal_the_callers_own_exports_succeed():
    with pytest.raises(UnsupportedError):
        nncompress.load(Conditional().eval(), input="2x4")
    assert torch.export.export(Conditional(), (torch.randn(2, 4),))
