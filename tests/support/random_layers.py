"""Layers of random networks: `LAYERS[rank][name](shape, a, b)` makes one for values of `shape`.

The shape is without the batch. Rank 3 is an image [channels, height, width], rank 2 a sequence or a signal
[channels, length], rank 1 a vector. `a` and `b` are small integers, taken modulo: they choose what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, ...]
Make = Callable[[Shape, int, int], nn.Module]


class Op(nn.Module):
    """`forward(parts, x)`: a function of a value and of modules, parameters and buffers by name."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def pick(options: list[Any], number: int) -> Any:
    return options[number % len(options)]


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / max(shape[0], 1) ** 0.5)


def divisors(count: int) -> list[int]:
    return [d for d in range(1, count + 1) if count % d == 0]


# -- any rank ----------------------------------------------------------------------------------------------


def activation(shape: Shape, a: int, b: int) -> nn.Module:
    made = [
        nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(0.1), nn.Tanh(),
        nn.Sigmoid(), nn.ReLU6(), nn.Softplus(), nn.ELU(inplace=True), nn.Mish(), nn.Hardsigmoid(), nn.SELU(),
        nn.PReLU(shape[0] if len(shape) != 2 or b % 2 else 1), nn.Dropout(0.2), nn.GELU(approximate="tanh"),
        Op(lambda m, x: x.clamp(-1, 1)), Op(lambda m, x: x.relu_()), Op(lambda m, x: x.abs().sqrt()),
        Op(lambda m, x: F.relu(x) ** 2), Op(lambda m, x: x * torch.sigmoid(1.702 * x)),
        Op(lambda m, x: -x.exp().log1p()),
        Op(lambda m, x: torch.where(x > 0, x, 0.2 * x)),
        Op(lambda m, x: torch.maximum(x, x * m.s), s=parameter(1)),
        Op(lambda m, x: x.clone().mul_(0.5).add_(1)), Op(lambda m, x: torch.stack([x, -x]).amax(0)),
    ]  # fmt: skip
    return pick(made, a)


def scale(shape: Shape, a: int, b: int) -> nn.Module:
    """A parameter or a constant per channel (or per last index), multiplied or added."""
    size = (shape[0], *[1] * (len(shape) - 1)) if a % 2 else (shape[-1],)
    value = torch.randn(size) + 1
    how: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, x: x * m.value,
        lambda m, x: x + m.value,
        lambda m, x: (x - m.value) / (m.value.abs() + 1),
        lambda m, x: torch.addcmul(x, x, m.value),
    ]
    return Op(pick(how, b), value=value if (a // 2) % 2 else nn.Parameter(value))


def reorder(shape: Shape, a: int, b: int) -> nn.Module:
    """The first dim split, shuffled, rolled, flipped, cut or repeated."""
    channels = shape[0]
    half, groups = max(channels // 2, 1), pick(divisors(channels), b)
    how: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, x: torch.cat([F.relu(x[:, :half]), x[:, half:]], 1),
        lambda m, x: torch.cat(list(reversed(x.split(half, 1))), 1),
        lambda m, x: x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2),
        lambda m, x: x.roll(1, 1),
        lambda m, x: x.flip(1),
        lambda m, x: x[:, ::2],
        lambda m, x: x[:, m.index],
        lambda m, x: x.repeat_interleave(2, 1),
        lambda m, x: torch.cat([x, -x], 1),
        lambda m, x: x.index_select(1, m.index),
        lambda m, x: sum(x.chunk(2, 1)) if channels % 2 == 0 else x,
        lambda m, x: torch.stack([x, x * 2], 2).flatten(1, 2),
        lambda m, x: torch.hstack([x, x.sigmoid()]),
        lambda m, x: x.transpose(1, -1),
        lambda m, x: _written(x, half),
    ]
    return Op(pick(how, a), index=torch.randperm(channels))


def _written(x: Tensor, half: int) -> Tensor:
    """A slice of a copy is written to."""
    x = x.clone()
    x[:, :half] = x[:, :half].tanh()
    x[:, half:].relu_()
    return x


# -- images ------------------------------------------------------------------------------------------------


def convolution(shape: Shape, a: int, b: int) -> nn.Module:
    channels = shape[0]
    dims = len(shape) - 1
    kind: Any = pick([nn.Conv1d, nn.Conv2d], dims - 1)
    groups = pick([1, 1, channels, pick(divisors(channels), b)], a)
    outputs = pick([channels, 2 * channels, groups * pick([2, 3, 1], b)], b)
    options = {
        "stride": pick([1, 1, 2], a),
        "padding": pick([1, 0, 1, 2], b),
        "dilation": pick([1, 1, 1, 2], b),
    }
    mode = pick(["zeros", "zeros", "zeros", "reflect", "circular", "replicate"], a)
    kernel = pick([3, 1, 3, 2], a)
    options |= {"groups": groups, "bias": b % 3 > 0, "padding_mode": mode}
    if a % 5 == 4:
        return nn.utils.parametrizations.weight_norm(kind(channels, outputs, kernel, **options))
    return kind(channels, outputs, kernel, **options)


def transposed(shape: Shape, a: int, b: int) -> nn.Module:
    channels, dims = shape[0], len(shape) - 1
    groups = pick([1, pick(divisors(channels), b)], a)
    kind: Any = pick([nn.ConvTranspose1d, nn.ConvTranspose2d], dims - 1)
    outputs, kernel, stride = groups * pick([1, 2], b), pick([3, 2], a), pick([1, 2], b)
    return kind(channels, outputs, kernel, stride=stride, padding=1, groups=groups)


class Channelwise(nn.Module):
    """A layer over the last dim, applied to the first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, -1)).transpose(1, -1)


def norm(shape: Shape, a: int, b: int) -> nn.Module:
    channels, dims = shape[0], len(shape) - 1
    batch: Any = pick([nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d], dims)
    made = [
        batch(channels, affine=b % 3 > 0),
        nn.GroupNorm(pick(divisors(channels), b), channels),
        nn.LayerNorm(shape[-1], bias=b % 2 > 0),
        nn.RMSNorm(shape[-1]),
        Channelwise(nn.LayerNorm(channels)),
        nn.LayerNorm(shape),
        Op(lambda m, x: F.normalize(x, dim=1)),
        Op(_rms, g=parameter(shape[-1])),
        Op(_standardized),
        pick([nn.Identity(), nn.InstanceNorm1d(channels, affine=True), nn.InstanceNorm2d(channels)], dims),
    ]  # fmt: skip
    return pick(made, a)


def _rms(m: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * m.g


def _standardized(m: Any, x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-3).sqrt()


def pool(shape: Shape, a: int, b: int) -> nn.Module:
    made = [
        nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=b % 2 > 0),
        nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2), nn.PixelUnshuffle(2), nn.PixelShuffle(2),
        Op(lambda m, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 2)),
        Op(lambda m, x: F.pad(x, (1, 0, 0, 1))),
        Op(lambda m, x: F.interpolate(x, size=(4, 4), mode="bilinear")),
        nn.AdaptiveMaxPool2d(2), Op(lambda m, x: x[:, :, ::2, 1:]), nn.LPPool2d(2, 2), nn.ZeroPad2d(1),
    ]  # fmt: skip
    return pick(made, a)


class Branches(nn.Module):
    """Two branches of one value, joined by a sum, a product, a concatenation or a gate."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self._join = left, right, join

    def forward(self, x: Tensor) -> Tensor:
        return self._join(self.left(x), self.right(x))


def residual(shape: Shape, a: int, b: int) -> nn.Module:
    """A block around which its input flows; the shortcut is the identity, a projection or zero padding."""
    channels, dims = shape[0], len(shape) - 1
    if dims == 0 or (dims == 1 and a % 2):
        width = shape[-1]
        inner = nn.Sequential(norm_of(width, b), nn.Linear(width, 2 * width), activation(shape, b, 0))
        return Branches(torch.add, nn.Sequential(inner, nn.Linear(2 * width, width)), nn.Identity())
    conv: Any = pick([nn.Conv1d, nn.Conv2d], dims - 1)
    batch: Any = pick([nn.BatchNorm1d, nn.BatchNorm2d], dims - 1)
    outputs, stride = pick([channels, channels, channels + 2 * (channels % 2 + 1)], a), pick([1, 1, 2], a)
    body = nn.Sequential(
        conv(channels, outputs, 3, stride, 1, bias=False), batch(outputs),
        activation((outputs, *shape[1:]), b, 0),
        conv(outputs, outputs, 3, 1, 1, bias=b % 2 > 0), batch(outputs),
    )  # fmt: skip
    if outputs == channels and stride == 1:
        return Branches(torch.add, body, nn.Identity())
    if b % 2:
        return Branches(torch.add, body, nn.Sequential(conv(channels, outputs, 1, stride), batch(outputs)))
    pad, extra = [0, 0] * dims, outputs - channels
    steps = (slice(None), slice(None), *[slice(None, None, stride)] * dims)
    zeros = Op(lambda m, x: F.pad(x[steps], [*pad, extra // 2, extra - extra // 2]))
    return Branches(torch.add, body, zeros)


def norm_of(width: int, b: int) -> nn.Module:
    return pick([nn.LayerNorm(width), nn.RMSNorm(width), nn.Identity()], b)


def branches(shape: Shape, a: int, b: int) -> nn.Module:
    joins = [lambda x, y: torch.cat([x, y], 1), torch.add, torch.mul, lambda x, y: x * y.sigmoid(), torch.sub]
    if len(shape) == 1:
        left, right = nn.Linear(shape[0], 8), nn.Sequential(nn.Linear(shape[0], 8), activation((8,), b, 0))
    else:
        conv: Any = pick([nn.Conv1d, nn.Conv2d], len(shape) - 2)
        left, right = (
            conv(shape[0], 8, 3, 1, 1),
            nn.Sequential(conv(shape[0], 8, 1), activation((8, *shape[1:]), b, 0)),
        )
    return Branches(pick(joins, a), left, right)


def gate(shape: Shape, a: int, b: int) -> nn.Module:
    """Squeeze and excitation, or a gated linear unit."""
    channels, dims = shape[0], list(range(2, len(shape) + 1))
    if a % 3 == 0 and channels % 2 == 0:
        return pick([nn.GLU(1), Op(lambda m, x: F.silu(x.chunk(2, 1)[0]) * x.chunk(2, 1)[1])], b)
    squeeze, excite = nn.Linear(channels, 4), nn.Linear(4, channels)
    spread = [-1, channels, *[1] * (len(shape) - 1)]

    def forward(m: Any, x: Tensor) -> Tensor:
        y = x.mean(dims) if dims else x
        return x * m.excite(F.relu(m.squeeze(y))).sigmoid().reshape(spread)

    return Op(forward, squeeze=squeeze, excite=excite)


def twice(shape: Shape, a: int, b: int) -> nn.Module:
    """One layer applied two times: its weights are tied."""
    if len(shape) == 1 or a % 2:
        return Op(lambda m, x: m.layer(F.gelu(m.layer(x))), layer=nn.Linear(shape[-1], shape[-1]))
    conv: Any = pick([nn.Conv1d, nn.Conv2d], len(shape) - 2)
    return Op(lambda m, x: m.layer(F.relu(m.layer(x))), layer=conv(shape[0], shape[0], 3, 1, 1))


def tokens(shape: Shape, a: int, b: int) -> nn.Module:
    if a % 2:
        return Op(lambda m, x: x.permute(0, 2, 3, 1).flatten(1, 2))
    return Op(lambda m, x: x.flatten(2).mT)


# -- sequences ---------------------------------------------------------------------------------------------


def linear(shape: Shape, a: int, b: int) -> nn.Module:
    width, wide = shape[-1], pick([8, 12, shape[-1], 5], b)
    made = [
        nn.Linear(width, wide, bias=b % 2 > 0),
        Op(lambda m, x: x @ m.w, w=parameter(width, wide)),
        Op(lambda m, x: torch.einsum("...i,io->...o", x, m.w), w=parameter(width, wide)),
        nn.utils.parametrizations.weight_norm(nn.Linear(width, wide)),
        nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width)),
        Op(lambda m, x: torch.matmul(m.w, x[..., None])[..., 0], w=parameter(wide, width)),
        Op(lambda m, x: torch.tensordot(x, m.w, ([-1], [1])), w=parameter(wide, width)),
    ]  # fmt: skip
    return pick(made, a)


class Attention(nn.Module):
    """Several heads; queries, keys and values projected together or apart, keys and values shared or not."""

    def __init__(self, width: int, heads: int, size: int, kind: int, length: int) -> None:
        super().__init__()
        self.heads, self.size, self.kind = heads, size, kind
        shared = kind % 4 == 1  # one head of keys and values for all queries
        self.key_heads = 1 if shared else heads
        self.q = nn.Linear(width, heads * size)
        self.kv = nn.Linear(width, 2 * self.key_heads * size, bias=kind % 3 > 0)
        self.out = nn.Linear(heads * size, width)
        self.register_buffer("mask", torch.ones(length, length).tril() == 0)
        self.bias = parameter(heads, 1, 1) if kind % 4 == 3 else None

    def forward(self, x: Tensor) -> Tensor:  # [N, T, D]
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, self.size).transpose(1, 2)
        kv = self.kv(x).view(n, t, 2, self.key_heads, self.size)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind % 2 == 0:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.kind % 4 == 2)
        else:
            scores = q @ k.mT / self.size**0.5
            scores = scores if self.bias is None else scores + self.bias
            y = scores.masked_fill(self.mask, float("-inf")).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


def attention(shape: Shape, a: int, b: int) -> nn.Module:
    length, width = shape
    if a % 5 == 4 and width % 2 == 0:
        whole = nn.MultiheadAttention(width, 2, batch_first=True)
        return Op(lambda m, x: x + m.attention(x, x, x, need_weights=b % 2 > 0)[0], attention=whole)
    made = Attention(width, pick([2, 3, 4], b), pick([4, 2], b), a, length)
    return pick([Branches(torch.add, made, nn.Identity()), made], b)


def recurrent(shape: Shape, a: int, b: int) -> nn.Module:
    options = {"batch_first": True, "bidirectional": b % 3 == 2, "num_layers": pick([1, 1, 2], b)}
    kind: Any = pick([nn.LSTM, nn.GRU, nn.RNN], a)
    return Op(lambda m, x: m.cell(x)[0], cell=kind(shape[1], pick([6, 8], b), **options))


def positions(shape: Shape, a: int, b: int) -> nn.Module:
    value = torch.randn(shape)
    return Op(lambda m, x: x + m.value, value=value if a % 2 else nn.Parameter(value))


def to_vector(shape: Shape, a: int, b: int) -> nn.Module:
    dims = list(range(2, len(shape) + 1))
    how: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, x: x.mean(dims), lambda m, x: x.flatten(1), lambda m, x: x.amax(dims),
        lambda m, x: x.flatten(2)[..., -1], lambda m, x: x[:, 0].flatten(1), lambda m, x: x.sum(1).flatten(1),
        lambda m, x: x.reshape(x.shape[0], -1), lambda m, x: x.flatten(2).logsumexp(2),
    ]  # fmt: skip
    return Op(pick(how, a))


def to_sequence(shape: Shape, a: int, b: int) -> nn.Module:
    length = pick(divisors(shape[0]), b)
    return Op(lambda m, x: x.reshape(-1, length, shape[0] // length))


_ANY: dict[str, Make] = {"activation": activation, "scale": scale, "reorder": reorder, "norm": norm}
_ANY |= {"residual": residual, "branches": branches, "gate": gate, "twice": twice, "linear": linear}
_SPATIAL: dict[str, Make] = {"convolution": convolution, "transposed": transposed, "to_vector": to_vector}
LAYERS: dict[int, dict[str, Make]] = {
    3: {**_ANY, **_SPATIAL, "pool": pool, "tokens": tokens},
    2: {**_ANY, **_SPATIAL, "attention": attention, "recurrent": recurrent, "positions": positions},
    1: {**_ANY, "to_sequence": to_sequence},
}
NAMES = sorted({name for table in LAYERS.values() for name in table})
