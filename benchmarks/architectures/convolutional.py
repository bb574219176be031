"""Convolutional nets that classify: plain, branching, dense, mobile, of videos and of pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.architectures.residual import Head, SqueezeExcite, conv_bn


class VGG(nn.Module):
    def __init__(self, width: int = 8, bn: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        i = 3
        for o in (width, "M", 2 * width, "M", 4 * width, 4 * width, "M"):
            if o == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(i, o, 3, padding=1), *([nn.BatchNorm2d(o)] if bn else []), nn.ReLU(True)]
            i = o
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(i * 4, 32),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(32, 32),
            nn.ReLU(True),
            nn.Linear(32, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class AlexNet(nn.Module):
    """Two convolution groups, local response normalisation across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 5, 2, 2)
        self.b = nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.c = nn.Conv2d(32, 24, 3, padding=1, groups=2)
        self.norm, self.fc = nn.LocalResponseNorm(5), nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(F.relu(self.a(x))), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.c(F.relu(self.b(x)))), 4)
        return self.fc(x.view(x.shape[0], -1))


class InceptionBlock(nn.Module):
    def __init__(self, i: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        a, b1, b2, c1, c2, d = widths
        act = nn.ReLU(True)
        self.a = conv_bn(i, a, 1, act=act)
        self.b = nn.Sequential(conv_bn(i, b1, 1, act=act), conv_bn(b1, b2, 3, act=act))
        self.c = nn.Sequential(conv_bn(i, c1, 1, act=act), conv_bn(c1, c2, 5, act=act))
        self.d = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(i, d, 1, act=act))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], 1)


class GoogLeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, act=nn.ReLU(True))
        self.a, self.b = InceptionBlock(16, (8, 8, 12, 4, 6, 6)), InceptionBlock(32, (8, 8, 16, 4, 8, 8))
        self.head, self.aux = Head(40), Head(32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(F.max_pool2d(self.stem(x), 2))
        return self.head(self.b(x)), self.aux(x)


class InceptionV3(nn.Module):
    """Factorised 1xk and kx1 convolutions, a strided pooling branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, act=nn.ReLU())
        self.a1, self.a2 = (
            nn.Conv2d(16, 12, (1, 7), padding=(0, 3)),
            nn.Conv2d(12, 12, (7, 1), padding=(3, 0)),
        )
        self.b, self.c = nn.Conv2d(16, 8, 3, 2, 1), nn.Conv2d(28, 20, 3, 2, 1)
        self.head = Head(8 + 20 + 28)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.cat([x, F.relu(self.a2(self.a1(x)))], 1)
        return self.head(torch.cat([self.b(x), self.c(y), F.max_pool2d(y, 3, 2, 1)], 1))


class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        fire = [(16, 4, 8), (16, 6, 12)]
        self.squeeze = nn.ModuleList([nn.Conv2d(i, s, 1) for i, s, _ in fire])
        self.one = nn.ModuleList([nn.Conv2d(s, e, 1) for _, s, e in fire])
        self.three = nn.ModuleList([nn.Conv2d(s, e, 3, padding=1) for _, s, e in fire])
        self.classifier = nn.Conv2d(24, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for s, a, b in zip(self.squeeze, self.one, self.three):
            y = F.relu(s(x))
            x = torch.cat([F.relu(a(y)), F.relu(b(y))], 1)
        return self.classifier(x).mean((2, 3))


class DenseNet(nn.Module):
    def __init__(self, growth: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks, self.transitions, c = nn.ModuleList(), nn.ModuleList(), 16
        for _ in range(2):
            block = nn.ModuleList()
            for _ in range(layers):
                block.append(
                    nn.Sequential(
                        nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 4 * growth, 1, bias=False),
                        nn.BatchNorm2d(4 * growth), nn.ReLU(),
                        nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
                    )
                )  # fmt: skip
                c += growth
            self.blocks.append(block)
            self.transitions.append(nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c // 2, 1)))
            c //= 2
        self.head = Head(c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions):
            seen = [x]
            for layer in block.children():
                seen.append(layer(torch.cat(seen, 1)))
            x = F.avg_pool2d(transition(torch.cat(seen, 1)), 2)
        return self.head(x)


class CSPNet(nn.Module):
    """Cross-stage partial (YOLO): half of the channels go round the blocks."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        act = nn.SiLU()
        self.stem = conv_bn(3, c, act=act)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(conv_bn(c // 2, c // 2, 1, act=act), conv_bn(c // 2, c // 2, act=act))
                for _ in "ab"
            ]
        )
        self.join, self.head = conv_bn(c // 2 * 4, c, 1, act=act), Head(c)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        done = [a, b]
        for block in self.blocks:
            b = b + block(b)
            done.append(b)
        return self.head(self.join(torch.cat(done, 1)))


class MobileNetV1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 8, 3, 2, act=nn.ReLU6())]
        for i, o, s in ((8, 16, 1), (16, 24, 2), (24, 24, 1)):
            layers += [conv_bn(i, i, 3, s, i, nn.ReLU6()), conv_bn(i, o, 1, act=nn.ReLU6())]
        self.features, self.head = nn.Sequential(*layers), Head(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class InvertedResidual(nn.Module):
    def __init__(
        self, i: int, o: int, stride: int, act: nn.Module, expand: int = 4, se: bool = False
    ) -> None:
        super().__init__()
        mid = i * expand
        self.body = nn.Sequential(
            conv_bn(i, mid, 1, act=act),
            conv_bn(mid, mid, 3, stride, mid, act),
            SqueezeExcite(mid) if se else nn.Identity(),
            conv_bn(mid, o, 1),
        )
        self.add = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.add else y


class MobileNet(nn.Module):
    """V2 with ReLU6; V3 with hard-swish and squeeze-excite; EfficientNet with SiLU."""

    def __init__(self, act: nn.Module, se: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 8, 3, 2, act=act)]
        for i, o, s in ((8, 8, 1), (8, 16, 2), (16, 16, 1)):
            layers.append(InvertedResidual(i, o, s, act, 4, se))
        self.features, self.last = nn.Sequential(*layers), conv_bn(16, 32, 1, act=act)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.features(x)))


class MixConv(nn.Module):
    """MixNet: depthwise kernels of several sizes on parts of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.sizes = conv_bn(3, 24, act=nn.ReLU()), (12, 8, 4)
        self.parts = nn.ModuleList(
            [nn.Conv2d(c, c, k, padding=k // 2, groups=c) for c, k in zip(self.sizes, (3, 5, 7))]
        )
        self.out, self.head = conv_bn(24, 16, 1), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.stem(x), self.sizes, 1)
        return self.head(self.out(torch.cat([f(p) for f, p in zip(self.parts, parts)], 1)))


class GhostNet(nn.Module):
    """Half of the features are made cheaply from the other half; cut to the width wanted."""

    def __init__(self, o: int = 20) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, act=nn.ReLU())
        self.primary, self.cheap = conv_bn(16, 12, 1, act=nn.ReLU()), conv_bn(12, 12, 3, 1, 12, nn.ReLU())
        self.o, self.head = o, Head(o)

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(self.stem(x))
        return self.head(torch.cat([a, self.cheap(a)], 1)[:, : self.o])


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleNetV1(nn.Module):
    def __init__(self, c: int = 24, groups: int = 3) -> None:
        super().__init__()
        self.stem, self.groups = conv_bn(3, c, act=nn.ReLU()), groups
        self.a, self.b = conv_bn(c, c, 1, 1, groups, nn.ReLU()), conv_bn(c, c, 3, 1, c)
        self.c, self.head = conv_bn(c, c, 1, 1, groups), Head(c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.c(self.b(shuffle(self.a(x), self.groups))) + x))


class ShuffleNetV2(nn.Module):
    def __init__(self, c: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, act=nn.ReLU())
        self.left = nn.Sequential(conv_bn(16, 16, 3, 2, 16), conv_bn(16, c // 2, 1, act=nn.ReLU()))
        self.right = self.branch(16, c // 2, 2)
        self.blocks = nn.ModuleList([self.branch(c // 2, c // 2, 1) for _ in range(blocks)])
        self.last, self.head = conv_bn(c, 48, 1, act=nn.ReLU()), Head(48)

    @staticmethod
    def branch(i: int, o: int, s: int) -> nn.Sequential:
        return nn.Sequential(
            conv_bn(i, o, 1, act=nn.ReLU()), conv_bn(o, o, 3, s, o), conv_bn(o, o, 1, act=nn.ReLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)
        for block in self.blocks:
            a, b = x.chunk(2, 1)
            x = shuffle(torch.cat([a, block(b)], 1), 2)
        return self.head(self.last(x))


class Video(nn.Module):
    """(2+1)-D and 3-D convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.time = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(8, 12, (3, 1, 1))
        self.bn, self.full = nn.BatchNorm3d(12), nn.Conv3d(12, 16, 3, groups=4)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.time(F.relu(self.space(x)))))
        return self.fc(F.adaptive_avg_pool3d(F.relu(self.full(x)), 1).flatten(1))


class Siamese(nn.Module):
    """One encoder on two images; their difference and product are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8, act=nn.ReLU()), conv_bn(8, 16, 3, 2, act=nn.ReLU()))
        self.fc = nn.Linear(32, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (self.body(v).mean((2, 3)) for v in (a, b))
        return self.fc(torch.cat([(a - b).abs(), a * b], 1))
