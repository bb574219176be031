"""Small networks of separable residual blocks (Çallı 2017, §2.4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress.zoo.initialize import he


class SeparableBlock(nn.Module):
    """BN-ReLU-depthwise-pointwise twice (full pre-activation), plus the identity.

    The stride lies in the first depthwise convolution, the channels grow in the first pointwise one.

    Args:
        projection: the identity of a block that changes shape is a strided 1×1 convolution (ImageNet);
            otherwise average pooling and channels of zeros, without parameters (CIFAR-10).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.depthwise1 = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.pointwise1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.depthwise2 = nn.Conv2d(outputs, outputs, 3, 1, 1, groups=outputs, bias=False)
        self.pointwise2 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.stride, self.zeros = stride, outputs - inputs
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if projection and changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise1(self.depthwise1(F.relu(self.bn1(x))))
        y = self.pointwise2(self.depthwise2(F.relu(self.bn2(y))))
        if self.shortcut is not None:
            return y + self.shortcut(x)
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        if self.zeros:
            x = F.pad(x, (0, 0, 0, 0, self.zeros // 2, self.zeros - self.zeros // 2))
        return y + x


def _blocks(inputs: int, widths: list[int], strides: list[int], projection: bool) -> nn.Sequential:
    made = []
    for width, stride in zip(widths, strides):
        made.append(SeparableBlock(inputs, width, stride, projection))
        inputs = width
    return nn.Sequential(*made)


class SmallSeparable(nn.Module):
    """[batch, 3, 24, 24] -> [batch, classes]: a convolution, then 6 separable residual blocks.

    The thesis gives 0.12 M parameters, 27 layers and ~13 M operations; the figure with the widths is lost in
    the copy we have. Of the ways to halve the image in two of the six blocks, a first width of 40 with the
    fourth and fifth block doubling comes closest: 0.122 M parameters and 12.3 M MACs. Its 26 weighted layers
    and the global pooling make 27.
    """

    def __init__(self, classes: int = 10, channels: int = 3, width: int = 40) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        widths = [width, width, width, 2 * width, 4 * width, 4 * width]
        self.blocks = _blocks(width, widths, [1, 1, 1, 2, 2, 1], projection=False)
        self.bn = nn.BatchNorm2d(4 * width)
        self.linear = nn.Linear(4 * width, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.conv1(x))
        return self.linear(torch.mean(F.relu(self.bn(x)), (2, 3)))


class LightStem(nn.Module):
    """[batch, 3, 224, 224] -> [batch, outputs, 56, 56].

    Two 3×3 convolutions (the first strided), a 3×3 depthwise that doubles the channels, a 1×1 pointwise, max
    pooling. The thesis gives no widths, but "about four times" less work than a 7×7: that is a width of 9.
    """

    def __init__(self, channels: int, outputs: int, width: int = 9) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, 2 * width, 3, 1, 1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(2 * width, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.max_pool2d(self.pointwise(self.depthwise(x)), 3, 2, 1)


class SeparableResNet34(nn.Module):
    """[batch, 3, 224, 224] -> [batch, classes]: ResNet-34 of separable residual blocks, with a light stem."""

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        self.stem = LightStem(channels, 64)
        inputs = 64
        for stage, depth in enumerate((3, 4, 6, 3)):
            width = 64 * 2**stage
            strides = [2 if stage else 1, *[1] * (depth - 1)]
            self.add_module(f"layer{stage + 1}", _blocks(inputs, [width] * depth, strides, projection=True))
            inputs = width
        self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.linear(torch.mean(F.relu(self.bn(x)), (2, 3)))


def small_separable(classes: int = 10, channels: int = 3) -> nn.Module:
    """The thesis's CIFAR-10 model: 91.10 % there."""
    return SmallSeparable(classes, channels)


def separable_resnet34(classes: int = 1000, channels: int = 3) -> nn.Module:
    """The thesis's ImageNet model: 63 % there."""
    return SeparableResNet34(classes, channels)
