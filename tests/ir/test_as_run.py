"""Masked positions of an encoder hold what a run of it gives there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import nncompress

LENGTHS = [[5, 2, 6], [6, 6, 6], [1, 3, 2]]


class Encoder(nn.Module):
    """The mean over all positions, masked or not."""

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=norm)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding).mean(1)


@pytest.mark.parametrize("door", ["load", "from_module"])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(8), nn.RMSNorm(8)], ids=["none", "layer", "rms"])
def test_padding_is_zero_where_all_of_it_lies_at_the_end(norm: nn.Module | None, door: str) -> None:
    torch.manual_seed(0)
    net = Encoder(norm).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(3, 6, 8)
    masks = [torch.arange(6) >= torch.tensor(lengths)[:, None] for lengths in LENGTHS]
    masks.append(masks[0].roll(1, 1))  # not at the end
    if door == "load":
        model = nncompress.load(net, input=(x, masks[0]))
    else:
        model = nncompress.Model.from_module(net, (x, masks[0]))
    for mask in masks:
        with torch.no_grad():
            torch.testing.assert_close(model(x, mask), net(x, mask), atol=1e-5, rtol=1e-4)


def test_padding_is_computed_where_an_encoder_trains() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).train()
    x, mask = torch.randn(3, 6, 8), torch.arange(6) >= torch.tensor(LENGTHS[0])[:, None]
    with torch.no_grad():
        expected = net(x, src_key_padding_mask=mask)

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.net(x, src_key_padding_mask=mask)

    model = nncompress.Model.from_module(Padded().train(), (x, mask))
    torch.testing.assert_close(model(x, mask), expected, atol=1e-5, rtol=1e-4)


class Masked(nn.Module):
    """Reads left to right: a mask made in forward, one that it stores, and one with padding beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        made = torch.ones(6, 6, dtype=torch.bool).triu(1)
        y = self.both(x, x, tgt_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))
        y = self.both.encoder(y, mask=made, src_key_padding_mask=padding)
        return self.both.decoder(self.both.encoder(y, mask=self.mask), y[:, :3], self.mask)


def test_causal_masks_of_transformers_are_traced() -> None:
    """Whether a mask is the causal one was asked of its values, which a trace does not have."""
    torch.manual_seed(0)
    net, x = Masked().eval(), torch.randn(3, 6, 8)
    padding = torch.arange(6) >= torch.tensor([5, 2, 6])[:, None]
    told: list[str] = []
    model = nncompress.load(net, input=(x, torch.ones_like(padding)), notice=told.append)
    assert any("nothing to attend to" in each for each in told)  # all is padding, which it is compared on
    for batch in (1, 3):
        with torch.no_grad():
            wanted = net(x[:batch], padding[:batch])
            torch.testing.assert_close(model(x[:batch], padding[:batch]), wanted, atol=1e-5, rtol=1e-4)


@dataclass
class Found:
    scores: Tensor
    places: tuple[Tensor, ...]


class ReturnsDataclass(nn.Module):
    def forward(self, x: Tensor) -> Found:
        return Found(x * 2, (x + 1,))


def test_dataclasses_are_outputs_by_the_names_of_their_fields() -> None:
    module, x = ReturnsDataclass(), torch.randn(2, 3)
    model = nncompress.Model.from_module(module, (x,))
    assert model.outputs == ("scores", "places_0")
    assert [torch.equal(a, b) for a, b in zip(model(x), (x * 2, x + 1))] == [True, True]
    assert isinstance(module(x), Found)  # the module stays as it is
