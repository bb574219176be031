"""The CIFAR ResNets of He et al. 2015, §4.2, with option-A shortcuts.

nncompress inspect resnet20.safetensors --arch nncompress.zoo:resnet20 --input 1x3x32x32
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress.zoo.initialize import he


class Block(nn.Module):
    """Two 3×3 convolutions; the shortcut subsamples and zero-pads channels (no parameters)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = (outputs - inputs) // 2  # channels of zeros on each side
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """[batch, 3, 32, 32] -> [batch, classes]; 6 · blocks + 2 weighted layers, of 1, 2 and 4 widths."""

    def __init__(self, blocks: int, classes: int = 10, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks, 1)
        self.layer2 = self._stage(width, 2 * width, blocks, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, classes)
        he(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, (2, 3)))


def resnet20(classes: int = 10, channels: int = 3) -> nn.Module:
    """3 blocks a stage."""
    return CifarResNet(3, classes, channels)


def resnet32(classes: int = 10, channels: int = 3) -> nn.Module:
    """5 blocks a stage."""
    return CifarResNet(5, classes, channels)


def resnet44(classes: int = 10, channels: int = 3) -> nn.Module:
    """7 blocks a stage."""
    return CifarResNet(7, classes, channels)


def resnet56(classes: int = 10, channels: int = 3) -> nn.Module:
    """9 blocks a stage."""
    return CifarResNet(9, classes, channels)


def resnet110(classes: int = 10, channels: int = 3) -> nn.Module:
    """18 blocks a stage."""
    return CifarResNet(18, classes, channels)
