"""Convolutional nets that make maps and images: segmentation, detection, generation, super-resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.architectures.residual import conv_bn


class UNet(nn.Module):
    """Skip concatenations; transposed convolutions or bilinear upsampling; batch or group norm."""

    def __init__(self, up: str = "transposed", norm: str = "batch") -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            n = {
                "batch": nn.BatchNorm2d(o),
                "group": nn.GroupNorm(4, o),
                "instance": nn.InstanceNorm2d(o, affine=True),
            }
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), n[norm], nn.ReLU())

        self.down = nn.ModuleList([block(3, 8), block(8, 16), block(16, 32)])
        self.ups = nn.ModuleList(
            [
                nn.ConvTranspose2d(i, o, 2, 2)
                if up == "transposed"
                else nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(i, o, 1))
                for i, o in ((32, 16), (16, 8))
            ]
        )
        self.join = nn.ModuleList([block(32, 16), block(16, 8)])
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, down in enumerate(self.down):
            x = down(x)
            if i < 2:
                skips.append(x)
                x = F.max_pool2d(x, 2)
        for up, join in zip(self.ups, self.join):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        return self.out(x)


class FPN(nn.Module):
    """Detection neck: lateral convolutions, nearest upsampling, three outputs from one shared head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(
            [conv_bn(i, o, 3, 2, act=nn.ReLU()) for i, o in ((3, 8), (8, 16), (16, 32))]
        )
        self.lateral = nn.ModuleList([nn.Conv2d(c, 16, 1) for c in (8, 16, 32)])
        self.shared, self.predict = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for stage in self.body:
            x = stage(x)
            found.append(x)
        y, outputs = self.lateral[2](found[2]), []
        for i in (2, 1, 0):
            if i < 2:
                y = self.lateral[i](found[i]) + F.interpolate(y, scale_factor=2)
            outputs.append(self.predict(F.relu(self.shared(y))))
        return tuple(outputs)


class ASPP(nn.Module):
    """Dilated branches and an image-pooling branch that is expanded back (DeepLab)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, act=nn.ReLU())
        self.branches = nn.ModuleList([nn.Conv2d(16, 8, 3, padding=d, dilation=d) for d in (1, 2, 4)])
        self.pooled, self.join = nn.Conv2d(16, 8, 1), conv_bn(32, 16, 1, act=nn.ReLU())
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.out(self.join(torch.cat([*(b(x) for b in self.branches), pooled], 1)))


class Generator(nn.Module):
    """DCGAN: a linear layer seen as 4x4 maps, transposed convolutions, tanh."""

    def __init__(self, z: int = 16, c: int = 32) -> None:
        super().__init__()
        self.fc, self.c = nn.Linear(z, c * 16), c
        self.up1, self.bn1 = nn.ConvTranspose2d(c, c // 2, 4, 2, 1), nn.BatchNorm2d(c // 2)
        self.up2 = nn.ConvTranspose2d(c // 2, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.fc(z).view(-1, self.c, 4, 4))
        return torch.tanh(self.up2(F.leaky_relu(self.bn1(self.up1(x)), 0.2)))


class StyleGenerator(nn.Module):
    """Feature-wise modulation by a latent (AdaIN), a learned constant, per-channel noise strength."""

    def __init__(self, z: int = 16, c: int = 16) -> None:
        super().__init__()
        self.const, self.map = nn.Parameter(torch.randn(1, c, 4, 4)), nn.Linear(z, 24)
        self.style, self.conv = nn.Linear(24, 2 * c), nn.Conv2d(c, c, 3, padding=1)
        self.norm, self.rgb = nn.InstanceNorm2d(c), nn.Conv2d(c, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        scale, shift = self.style(F.leaky_relu(self.map(z)))[:, :, None, None].chunk(2, 1)
        x = self.const.expand(z.shape[0], -1, -1, -1)
        x = self.norm(F.interpolate(self.conv(x), scale_factor=2)) * (1 + scale) + shift
        return self.rgb(F.leaky_relu(x, 0.2))


class ESPCN(nn.Module):
    """Super-resolution: pixel shuffle, twice, as an op and written out."""

    def __init__(self, r: int = 2) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 8 * r * r, 3, padding=1)
        self.c, self.d, self.r = nn.Conv2d(8, 6 * r * r, 3, padding=1), nn.Conv2d(6, 1, 3, padding=1), r

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.b(torch.tanh(self.a(x))), self.r)
        x = self.c(F.relu(x))
        b, c, h, w = x.shape
        x = x.view(b, c // self.r**2, self.r, self.r, h, w).permute(0, 1, 4, 2, 5, 3)
        return self.d(x.reshape(b, c // self.r**2, h * self.r, w * self.r))


class EDSR(nn.Module):
    """Residual super-resolution with a global skip; also pixel unshuffle at the entry."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.head = nn.Conv2d(12, c, 3, padding=1)
        self.body = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.PReLU(c), nn.Conv2d(c, c, 3, padding=1))
                for _ in "ab"
            ]
        )
        self.tail = nn.Conv2d(c, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.head(F.pixel_unshuffle(x, 2))
        for block in self.body:
            x = x + 0.1 * block(x)
        return F.pixel_shuffle(self.tail(x + first), 2)


class Autoencoder(nn.Module):
    """The thesis' MNIST autoencoder 1-32-64-32-1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 3, 2, 1, 1), nn.BatchNorm2d(1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weights, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(20, 32), nn.Linear(32, 8)
        self.bias = nn.ParameterList([torch.zeros(32), torch.zeros(20)])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        x = torch.tanh(F.linear(x, self.b.weight.t(), self.bias[0]))
        return F.linear(x, self.a.weight.t(), self.bias[1])
