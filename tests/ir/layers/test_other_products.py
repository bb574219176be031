"""A matrix that multiplies otherwise than a layer does is named where a pass finds no layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nncompress
from nncompress.errors import UsageError
from nncompress.ir.layers.other_products import other_products


class FromTheLeft(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w @ x.unsqueeze(-1)).squeeze(-1)


class ByEinsum(FromTheLeft):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,bi->bo", self.w, x)


class AsALayer(FromTheLeft):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.unsqueeze(-1).mT, self.w).mT.squeeze(-1)


@pytest.mark.parametrize("spec", ["prune:std=0.5", "factorize:macs=0.7", "quantize"])
@pytest.mark.parametrize("network", [FromTheLeft, ByEinsum])
def test_a_matrix_that_is_no_layer_is_named_with_what_to_write(network, spec) -> None:
    with pytest.raises(UsageError, match=r"w multiplies from the left or by einsum(.|\n)*linear\(x\.mT, W\)"):
        nncompress.compress(network(), spec, input="1x5")


class PerHead(FromTheLeft):
    """Another product for each head: a layer has one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.w @ x[..., None, None]


class OfAVector(FromTheLeft):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum() + self.w @ x[0]


class OfItself(FromTheLeft):
    def forward(self, x: Tensor) -> Tensor:
        return x * (self.w @ self.w.T).sum()


@pytest.mark.parametrize("network", [PerHead, OfAVector, OfItself])
def test_what_is_no_layer_in_other_words_either_is_not_said_to_be(network) -> None:
    with pytest.raises(UsageError) as caught:
        nncompress.compress(network(), "prune:std=0.5", input="2x5")
    assert "functional.linear" not in str(caught.value)


def test_what_to_write_is_a_layer_and_computes_the_same() -> None:
    torch.manual_seed(0)
    before, after, x = FromTheLeft(), AsALayer(), torch.randn(3, 5)
    after.load_state_dict(before.state_dict())
    torch.testing.assert_close(after(x), before(x))
    assert other_products(nncompress.load(after, input="1x5")) == ""
    nncompress.compress(after, "prune:std=0.5", input="1x5", notice=lambda sentence: None)
