"""Residual families, each the smallest that still has the family's structure."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(
    i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    layers = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([act] if act is not None else []))


class Head(nn.Module):
    """Global average pooling and a classifier."""

    def __init__(self, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class CifarBlock(nn.Module):
    """Option A of He et al. 2015: a strided slice, zero-padded."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.pad, self.stride = (o - i) // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16] * blocks + [32] * blocks + [64] * blocks
        self.layers = nn.Sequential(*(CifarBlock(i, o, 1 + (i != o)) for i, o in zip([16, *widths], widths)))
        self.head = Head(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(F.relu(self.bn1(self.conv1(x)))))


class AveragePad(nn.Module):
    """Shortcut by average pooling and concatenated zeros (the 2017 thesis' variant)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = conv_bn(3, 8, act=nn.ReLU()), conv_bn(8, 16, s=2, act=nn.ReLU())
        self.b, self.head = conv_bn(16, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        short = F.avg_pool2d(x, 2)
        short = torch.cat([short, torch.zeros_like(short)], 1)
        return self.head(F.relu(self.b(self.a(x)) + short))


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(i, o, 3, stride, act=nn.ReLU(True)), conv_bn(o, o))
        self.short = conv_bn(i, o, 1, stride) if stride > 1 or i != o else nn.Identity()
        self.relu = nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.short(x))


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, r: int = 4, conv: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(c, c // r, 1), nn.Conv2d(c // r, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))))


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped), 1x1; optionally squeeze-excite. ResNet-50, ResNeXt, RegNet."""

    def __init__(self, i: int, mid: int, o: int, stride: int, groups: int = 1, se: bool = False) -> None:
        super().__init__()
        self.a = conv_bn(i, mid, 1, act=nn.ReLU(True))
        self.b = conv_bn(mid, mid, 3, stride, groups, act=nn.ReLU(True))
        self.se = SqueezeExcite(mid) if se else nn.Identity()
        self.c = conv_bn(mid, o, 1)
        self.short = conv_bn(i, o, 1, stride) if stride > 1 or i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.c(self.se(self.b(self.a(x)))) + self.short(x))


class ResNet(nn.Module):
    """`width` 64 and depths (3, 4, 6, 3) with `bottleneck` is ResNet-50."""

    def __init__(
        self,
        depths: tuple[int, ...] = (1, 1, 1, 1),
        width: int = 16,
        bottleneck: bool = False,
        groups: int = 1,
        se: bool = False,
        inner: float = 1.0,
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.MaxPool2d(3, 2, 1),
        ]  # fmt: skip
        i = width
        for stage, depth in enumerate(depths):
            for block in range(depth):
                w, stride = width * 2**stage, 2 if block == 0 and stage else 1
                o = 4 * w if bottleneck else w
                mid = int(w * inner)
                layers.append(
                    Bottleneck(i, mid, o, stride, groups, se) if bottleneck else BasicBlock(i, o, stride)
                )
                i = o
        self.features, self.head = nn.Sequential(*layers), Head(i, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.bn = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(4)])
        self.conv = nn.ModuleList([nn.Conv2d(16, 16, 3, 1, 1) for _ in range(4)])
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in (0, 2):
            y = self.conv[i](F.relu(self.bn[i](x)))
            x = x + self.conv[i + 1](F.relu(self.bn[i + 1](y)))
        return self.head(x)


class Res2Net(nn.Module):
    """The bottleneck's middle is split in four; each part adds the one before."""

    def __init__(self, i: int = 16, width: int = 8, scale: int = 4) -> None:
        super().__init__()
        self.stem = conv_bn(3, i, act=nn.ReLU())
        self.a, self.c = conv_bn(i, width * scale, 1, act=nn.ReLU()), conv_bn(width * scale, i, 1)
        self.convs = nn.ModuleList([conv_bn(width, width, act=nn.ReLU()) for _ in range(scale - 1)])
        self.width, self.head = width, Head(i)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = torch.split(self.a(x), self.width, 1)
        done = [parts[0]]
        y = parts[1]
        for i, conv in enumerate(self.convs):
            y = conv(y if i == 0 else y + parts[i + 1])
            done.append(y)
        return self.head(F.relu(self.c(torch.cat(done, 1)) + x))


class SKNet(nn.Module):
    """Selective kernels: two grouped branches, softmax attention between them."""

    def __init__(self, c: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.stem = conv_bn(3, c, act=nn.ReLU())
        self.branches = nn.ModuleList(
            [conv_bn(c, c, 3, 1, groups, nn.ReLU()), conv_bn(c, c, 5, 1, groups, nn.ReLU())]
        )
        self.fc1, self.fc2 = nn.Conv2d(c, 8, 1), nn.Conv2d(8, 2 * c, 1)
        self.head = Head(c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = torch.stack([b(x) for b in self.branches], 1)  # (B, 2, C, H, W)
        s = self.fc2(F.relu(self.fc1(both.sum(1).mean((2, 3), keepdim=True))))
        s = s.view(s.shape[0], 2, both.shape[2], 1, 1).softmax(1)
        return self.head((both * s).sum(1) + x)


class DPN(nn.Module):
    """Dual path: a sum and a concatenation cut from one convolution, grouped middle."""

    def __init__(self, c: int = 16, inc: int = 8, groups: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, c + inc, act=nn.ReLU())
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(
                    conv_bn(c + inc * (n + 1), 32, 1, act=nn.ReLU()),
                    conv_bn(32, 32, 3, 1, groups, nn.ReLU()),
                    conv_bn(32, c + inc, 1),
                )
                for n in range(2)
            ]
        )
        self.c, self.head = c, Head(c + 3 * inc)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        total, dense = x[:, : self.c], x[:, self.c :]
        for block in self.blocks:
            y = block(torch.cat([total, dense], 1))
            total = total + y[:, : self.c]
            dense = torch.cat([dense, y[:, self.c :]], 1)
        return self.head(F.relu(torch.cat([total, dense], 1)))


class StandardizedConv(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019) with a gain, as in NFNet."""

    def __init__(self, i: int, o: int, k: int, s: int = 1) -> None:
        super().__init__(i, o, k, s, k // 2)
        self.gain = nn.Parameter(torch.ones(o, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        w = (self.weight - mean) * torch.rsqrt(variance * self.weight[0].numel() + 1e-4) * self.gain
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class NFNet(nn.Module):
    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.stem = StandardizedConv(3, c, 3)
        self.a, self.b = StandardizedConv(c, 2 * c, 3, 2), StandardizedConv(2 * c, 2 * c, 3)
        self.short, self.gain = StandardizedConv(c, 2 * c, 1), nn.Parameter(torch.tensor(0.2))
        self.head = Head(2 * c)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x)) * 1.7
        y = self.b(F.gelu(self.a(x)) * 1.7)
        return self.head(self.short(F.avg_pool2d(x, 2)) + y * self.gain * 0.2)


class WeightNorm(nn.Module):
    """torch's weight_norm parametrisation on every layer."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        self.a, self.b = norm(nn.Conv2d(3, 16, 3, padding=1)), norm(nn.Conv2d(16, 16, 3, padding=1))
        self.fc = norm(nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class SplitAttention(nn.Module):
    """ResNeSt: radix splits of a grouped convolution, attention over the radix."""

    def __init__(self, c: int = 16, radix: int = 2, groups: int = 2) -> None:
        super().__init__()
        self.stem, self.first = conv_bn(3, c, act=nn.ReLU()), conv_bn(c, c, 1, act=nn.ReLU())
        self.conv, self.last = conv_bn(c, c * radix, 3, 1, groups * radix, nn.ReLU()), conv_bn(c, c, 1)
        self.fc1 = nn.Conv2d(c, 8, 1, groups=groups)
        self.fc2 = nn.Conv2d(8, c * radix, 1, groups=groups)
        self.radix, self.groups, self.head = radix, groups, Head(c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv(self.first(x))
        parts = y.view(y.shape[0], self.radix, y.shape[1] // self.radix, *y.shape[2:])
        gap = F.relu(self.fc1(parts.sum(1).mean((2, 3), keepdim=True)))
        a = self.fc2(gap).view(y.shape[0], self.groups, self.radix, -1).transpose(1, 2)
        a = a.softmax(1).reshape(y.shape[0], self.radix, -1, 1, 1)
        return self.head(self.last((parts * a).sum(1)) + x)
