"""Residual networks for CIFAR with batch norm and ReLU before each convolution.

ResNet-164 of He et al. 2016b (bottleneck blocks) and the wide networks of Zagoruyko and Komodakis 2016
(two 3×3 convolutions). Where a block changes the channels, its shortcut is a 1×1 convolution of the
normalised input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress.zoo.initialize import he


class Basic(nn.Module):
    """BN-ReLU-3×3 twice; the first convolution carries stride and width."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut


class Bottleneck(nn.Module):
    """BN-ReLU-convolution three times: 1×1 down to a quarter, 3×3 with the stride, 1×1 up."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.shortcut = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return self.conv3(F.relu(self.bn3(y))) + shortcut


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class PreactivationResNet(nn.Module):
    """[batch, 3, 32, 32] -> [batch, classes]; three stages of `blocks` blocks.

    Args:
        widths: output channels of the stages.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck],
        blocks: int,
        widths: tuple[int, int, int],
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        inputs = 16
        for number, width in enumerate(widths, 1):
            rest = [block(width, width, 1) for _ in range(blocks - 1)]
            stage = nn.Sequential(block(inputs, width, 1 if number == 1 else 2), *rest)
            self.add_module(f"layer{number}", stage)
            inputs = width
        self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(torch.mean(F.relu(self.bn(x)), (2, 3)))


def resnet164(classes: int = 10, channels: int = 3) -> nn.Module:
    """18 bottleneck blocks a stage."""
    return PreactivationResNet(Bottleneck, 18, (64, 128, 256), classes, channels)


def _wide(depth: int, factor: int, classes: int, channels: int) -> nn.Module:
    """6 · blocks + 4 = depth; the shortcuts' convolutions are not counted."""
    widths = (16 * factor, 32 * factor, 64 * factor)
    return PreactivationResNet(Basic, (depth - 4) // 6, widths, classes, channels)


def wrn_40_4(classes: int = 10, channels: int = 3) -> nn.Module:
    """40 layers, 4 times as wide as a ResNet-20."""
    return _wide(40, 4, classes, channels)


def wrn_28_10(classes: int = 100, channels: int = 3) -> nn.Module:
    """28 layers, 10 times as wide; for CIFAR-100."""
    return _wide(28, 10, classes, channels)


def wrn_22_10(classes: int = 100, channels: int = 3) -> nn.Module:
    """22 layers, 10 times as wide; for CIFAR-100."""
    return _wide(22, 10, classes, channels)
