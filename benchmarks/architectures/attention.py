"""Transformers, mixers and token models, self-written."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Fused q, k, v; heads by view; fused kernel or written out; optional talking heads and q/k norm."""

    def __init__(
        self, dim: int, heads: int, fused: bool = True, talking: bool = False, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.heads, self.fused, self.head_dim = heads, fused, dim // heads
        self.mix1, self.mix2 = (nn.Linear(heads, heads) if talking else None for _ in "ab")
        self.norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.norm(q), self.norm(k)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            a = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            if mask is not None:
                a = a + mask
            if self.mix1 is not None:
                a = self.mix1(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            a = a.softmax(-1)
            if self.mix2 is not None:
                a = self.mix2(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            x = a @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


def mlp(dim: int, hidden: int, out: int | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out or dim))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, scale: bool = False, **kw: bool) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, heads, **kw), mlp(dim, 4 * dim)
        self.g1, self.g2 = (nn.Parameter(torch.full((dim,), 0.5)) if scale else 1.0 for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.g1 * self.attn(self.n1(x))
        return x + self.g2 * self.mlp(self.n2(x))


class ViT(nn.Module):
    """Class token, position embedding, optional distillation token (DeiT), layer scale (CaiT)."""

    def __init__(
        self, dim: int = 32, heads: int = 4, depth: int = 2, distilled: bool = False, **kw: bool
    ) -> None:
        super().__init__()
        self.patch, extra = nn.Conv2d(3, dim, 4, 4), 2 if distilled else 1
        self.cls = nn.ParameterList([torch.randn(1, 1, dim) * 0.1 for _ in range(extra)])
        self.pos = nn.Parameter(torch.randn(1, 16 + extra, dim) * 0.1)
        self.blocks = nn.Sequential(*(Block(dim, heads, **kw) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleList([nn.Linear(dim, 10) for _ in range(extra)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([*(c.expand(x.shape[0], -1, -1) for c in self.cls), x], 1) + self.pos
        x = self.norm(self.blocks(x))
        out = [head(x[:, i]) for i, head in enumerate(self.heads)]
        return sum(out[1:], out[0]) / len(out)


class Swin(nn.Module):
    """Windows by view and permute, cyclic shift, relative position bias, patch merging."""

    def __init__(self, dim: int = 16, heads: int = 2, size: int = 8, window: int = 4) -> None:
        super().__init__()
        self.patch, self.window, self.size = nn.Conv2d(3, dim, 2, 2), window, size
        self.norm, self.attn = (
            nn.LayerNorm(dim),
            nn.ModuleList([Attention(dim, heads, fused=False) for _ in "ab"]),
        )
        self.mlps = nn.ModuleList([nn.Sequential(nn.LayerNorm(dim), mlp(dim, 2 * dim)) for _ in "ab"])
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.1)
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(
            1
        )
        offset = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("offsets", offset[..., 0] * (2 * window - 1) + offset[..., 1])
        self.merge, self.out = nn.Linear(4 * dim, 2 * dim, bias=False), nn.Linear(2 * dim, 10)
        self.merge_norm = nn.LayerNorm(4 * dim)

    def bias(self) -> Tensor:
        n = self.window**2
        return self.table[self.offsets.view(-1)].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        win = self.window
        for i in (0, 1):
            y = self.norm(x)
            if i:
                y = torch.roll(y, (-win // 2, -win // 2), (1, 2))
            y = y.view(b, h // win, win, w // win, win, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, win * win, c)
            y = self.attn[i](y, self.bias())
            y = y.view(b, h // win, w // win, win, win, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
            if i:
                y = torch.roll(y, (win // 2, win // 2), (1, 2))
            x = x + y
            x = x + self.mlps[i](x)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.out(self.merge(self.merge_norm(x)).mean((1, 2)))


class Mixer(nn.Module):
    def __init__(self, dim: int = 24, tokens: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.n1, self.n2 = (nn.ModuleList([nn.LayerNorm(dim) for _ in "ab"]) for _ in "ab")
        self.token = nn.ModuleList([mlp(tokens, 20) for _ in "ab"])
        self.channel = nn.ModuleList([mlp(dim, 2 * dim) for _ in "ab"])
        self.out = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for n1, n2, token, channel in zip(self.n1, self.n2, self.token, self.channel):
            x = x + token(n1(x).transpose(1, 2)).transpose(1, 2)
            x = x + channel(n2(x))
        return self.out(x.mean(1))


class ResMLP(nn.Module):
    """Affine instead of norms, a linear layer across patches, layer scale."""

    def __init__(self, dim: int = 24, tokens: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.alpha, self.beta = nn.Parameter(torch.ones(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dim))
        self.scale = nn.ParameterList([torch.full((dim,), 0.3) for _ in "ab"])
        self.cross, self.channel, self.out = nn.Linear(tokens, tokens), mlp(dim, 48), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.addcmul(self.beta, self.alpha, x)
        x = x + self.scale[0] * self.cross(y.transpose(1, 2)).transpose(1, 2)
        x = x + self.scale[1] * self.channel(x)
        return self.out(x.mean(1))


class GMLP(nn.Module):
    """Spatial gating unit: half of the channels, normalised and mixed across tokens, gate the other half."""

    def __init__(self, dim: int = 16, hidden: int = 48, tokens: int = 10) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden // 2, dim)
        self.gate_norm, self.mix = nn.LayerNorm(hidden // 2), nn.Conv1d(tokens, tokens, 1)
        self.out = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.fc1(self.norm(x))).chunk(2, -1)
        return self.out((x + self.fc2(u * self.mix(self.gate_norm(v)))).mean(1))


class ConvNeXt(nn.Module):
    """Depthwise 7x7, channels-last LayerNorm and MLP, layer scale; v2 with global response norm."""

    def __init__(self, dims: tuple[int, ...] = (16, 24), grn: bool = False) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, dims[0], 4, 4), nn.LayerNorm(dims[0])
        self.dw = nn.ModuleList([nn.Conv2d(d, d, 7, padding=3, groups=d) for d in dims])
        self.norm = nn.ModuleList([nn.LayerNorm(d) for d in dims])
        self.up = nn.ModuleList([nn.Linear(d, 4 * d) for d in dims])
        self.low = nn.ModuleList([nn.Linear(4 * d, d) for d in dims])
        self.gamma = nn.ParameterList([torch.full((d,), 0.3) for d in dims])
        self.grn = nn.ParameterList([torch.full((4 * d,), 0.3) for d in dims]) if grn else None
        self.down, self.out = nn.Conv2d(dims[0], dims[1], 2, 2), nn.Linear(dims[1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for i in range(2):
            y = F.gelu(self.up[i](self.norm[i](self.dw[i](x).permute(0, 2, 3, 1))))
            if self.grn is not None:
                g = y.norm(p=2, dim=(1, 2), keepdim=True)
                y = y + self.grn[i] * (y * (g / (g.mean(-1, keepdim=True) + 1e-6)))
            x = x + (self.gamma[i] * self.low[i](y)).permute(0, 3, 1, 2)
            if i == 0:
                x = self.down(x)
        return self.out(x.mean((2, 3)))


class PoolFormer(nn.Module):
    """Pooling as the token mixer, group norm with one group, layer scale on channels."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.patch, self.n1, self.n2 = nn.Conv2d(3, dim, 4, 4), nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.s1, self.s2 = (nn.Parameter(torch.full((dim,), 0.3)) for _ in "ab")
        self.fc1, self.fc2, self.out = nn.Conv2d(dim, 48, 1), nn.Conv2d(48, dim, 1), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        y = self.n1(x)
        x = x + self.s1[:, None, None] * (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
        x = x + self.s2[:, None, None] * self.fc2(F.gelu(self.fc1(self.n2(x))))
        return self.out(x.mean((2, 3)))


class ConvMixer(nn.Module):
    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.stem, self.pw = nn.Conv2d(3, dim, 4, 4), nn.Conv2d(dim, dim, 1)
        self.dw = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.bn, self.out = nn.ModuleList([nn.BatchNorm2d(dim) for _ in "abc"]), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn[0](F.gelu(self.stem(x)))
        x = x + self.bn[1](F.gelu(self.dw(x)))
        return self.out(self.bn[2](F.gelu(self.pw(x))).mean((2, 3)))


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Llama(nn.Module):
    """Grouped-query attention, rotary positions, RMS norm, gated MLP, tied head."""

    def __init__(self, dim: int = 32, heads: int = 8, kv: int = 2, layers: int = 2, vocab: int = 50) -> None:
        super().__init__()
        self.embed, self.heads, self.kv, self.d = nn.Embedding(vocab, dim), heads, kv, dim // heads
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(
                nn.ModuleDict(
                    {
                        "n1": RMSNorm(dim), "n2": RMSNorm(dim),
                        "q": nn.Linear(dim, dim, bias=False), "k": nn.Linear(dim, kv * self.d, bias=False),
                        "v": nn.Linear(dim, kv * self.d, bias=False), "o": nn.Linear(dim, dim, bias=False),
                        "gate": nn.Linear(dim, 48, bias=False), "up": nn.Linear(dim, 48, bias=False),
                        "down": nn.Linear(48, dim, bias=False),
                    }
                )
            )  # fmt: skip
        self.norm = RMSNorm(dim)
        self.register_buffer("freq", 1.0 / 10000 ** (torch.arange(0, self.d, 2) / self.d))

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x[..., : self.d // 2], x[..., self.d // 2 :]
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        b, n, c = x.shape
        angle = torch.arange(n)[:, None] * self.freq[None]
        angle = torch.cat([angle, angle], -1)
        cos, sin = angle.cos(), angle.sin()
        for m in self.layers:
            y = m["n1"](x)
            q = self.rotate(m["q"](y).view(b, n, self.heads, self.d).transpose(1, 2), cos, sin)
            k = self.rotate(m["k"](y).view(b, n, self.kv, self.d).transpose(1, 2), cos, sin)
            v = m["v"](y).view(b, n, self.kv, self.d).transpose(1, 2)
            k, v = (
                t[:, :, None]
                .expand(b, self.kv, self.heads // self.kv, n, self.d)
                .reshape(b, self.heads, n, self.d)
                for t in (k, v)
            )
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + m["o"](a.transpose(1, 2).reshape(b, n, c))
            y = m["n2"](x)
            x = x + m["down"](F.silu(m["gate"](y)) * m["up"](y))
        return F.linear(self.norm(x), self.embed.weight)


class EinsumAttention(nn.Module):
    """Projections and attention by einsum with weights of shape [dim, heads, head size]."""

    def __init__(self, dim: int = 24, heads: int = 4, d: int = 6) -> None:
        super().__init__()
        self.w = nn.ParameterList([torch.randn(dim, heads, d) * 0.3 for _ in "qkv"])
        self.o, self.out = nn.Parameter(torch.randn(heads, d, dim) * 0.3), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, w) for w in self.w)
        a = torch.einsum("bhnd,bhmd->bhnm", q, k).mul(0.4).softmax(-1)
        x = x + torch.einsum("bhnd,hdc->bnc", torch.einsum("bhnm,bhmd->bhnd", a, v), self.o)
        return self.out(x.mean(1))


class LinearAttention(nn.Module):
    """Softmax on features, keys and values summed first: the head's dims meet in a matrix."""

    def __init__(self, dim: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Conv2d(3, 3 * dim, 3, padding=1), nn.Conv2d(dim, dim, 1), heads
        self.out = nn.Conv2d(dim, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, -1, h * w) for t in self.qkv(x).chunk(3, 1))
        context = k.softmax(-1) @ v.transpose(-2, -1)
        y = (context.transpose(-2, -1) @ q.softmax(-2)).reshape(b, -1, h, w)
        return self.out(F.relu(self.proj(y)))


class ChannelAttention(nn.Module):
    """XCiT: attention among channels, with unit-norm queries and keys and a learned temperature."""

    def __init__(self, dim: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), heads
        self.temperature, self.out = nn.Parameter(torch.ones(heads, 1, 1)), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1)
        a = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        y = (a.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, n, c)
        return self.out((x + self.proj(y)).mean(1))


class TorchTransformer(nn.Module):
    """torch's own encoder and decoder layers."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.model = nn.Transformer(dim, 4, 1, 1, 48, batch_first=True)
        self.out = nn.Linear(dim, 7)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.out(self.model(source, target))


class MoE(nn.Module):
    """Dense mixture of experts: stacked expert weights, soft gates."""

    def __init__(self, dim: int = 16, hidden: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(experts, dim, hidden) * 0.3)
        self.w2 = nn.Parameter(torch.randn(experts, hidden, dim) * 0.3)
        self.gate, self.out = nn.Linear(dim, experts), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(x).softmax(-1)  # (B, E)
        y = F.relu(torch.einsum("bd,edh->ebh", x, self.w1))
        y = torch.bmm(y, self.w2)  # (E, B, D)
        return self.out((y * g.t()[:, :, None]).sum(0))
