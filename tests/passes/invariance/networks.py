"""Small transformers with a residual stream that may be seen in other axes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from nncompress.ir import Model

D, T, CLASSES = 24, 5, 7


class Scaled(nn.Module):
    """An RMS norm that is spelt out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x):
        wide = x.to(torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    def __init__(self, norm) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm(), nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.q, self.k = nn.Linear(D, D, bias=False), nn.Linear(D, D)
        self.v, self.out = nn.Linear(D, D), nn.Linear(D, D)
        self.before = norm()

    def forward(self, x):
        y = self.before(x)
        x = x + self.out(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Patches(nn.Module):
    """Like a vision transformer: a convolution, a class token, positions; the token or a mean is read."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(1, D, 4, 4), nn.Parameter(torch.randn(1, 1, D))
        self.places = nn.Parameter(torch.randn(1, 5, D))
        self.block, self.norm, self.head = Block(norm), norm(), nn.Linear(D, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = self.norm(self.block(x))
        return self.head(x[:, 0] + x.mean(1))


class Words(nn.Module):
    def __init__(self, norm=nn.LayerNorm, tied=False) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(CLASSES, D), nn.Embedding(T, D)
        self.blocks = nn.Sequential(Block(norm), Block(norm))
        self.norm, self.head = norm(), nn.Linear(D, CLASSES, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids) + self.places(torch.arange(T))
        return self.head(self.norm(self.blocks(x)))


def layer_norm() -> nn.Module:
    return nn.LayerNorm(D)


def bare_norm() -> nn.Module:
    return nn.LayerNorm(D, elementwise_affine=False)


def rms_norm() -> nn.Module:
    return nn.RMSNorm(D)


class Straight(Words):
    """A product reads the stream and writes into it; what a norm made gets another shift."""

    def __init__(self, norm) -> None:
        super().__init__(norm)
        self.own, self.shift = nn.Linear(D, D), nn.Parameter(torch.randn(D))
        self.norm = bare_norm()

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.own(self.blocks[0].before(x))
        return self.head(self.norm(self.blocks[1](x)) + self.shift)


NETWORKS = {
    "layer norms": lambda: Words(layer_norm),
    "rms norms": lambda: Words(rms_norm),
    "spelt out": lambda: Words(Scaled),
    "patches": lambda: Patches(layer_norm),
    "straight": lambda: Straight(layer_norm),
}


def built(net: nn.Module) -> Model:
    torch.manual_seed(0)
    with torch.no_grad():  # scales and shifts differ
        for value in net.parameters():
            if value.dim() == 1:
                value.add_(0.3 * torch.randn(value.shape))
    x = torch.randn(2, 1, 8, 8) if isinstance(net, Patches) else torch.randint(0, CLASSES, (2, T))
    return Model.from_module(net.eval(), (x,))


def random_axes(_model, streams, _context):
    """Orthogonal, and whatever becomes of the mean."""
    return [torch.linalg.qr(torch.randn(each.width, each.width).double())[0] for each in streams]
