"""The networks of the int8 latency table, as architecture files (names as in torchvision where it has them).

nncompress inspect w.safetensors --arch benchmarks/networks/int8_networks.py:mobilenet_v2 --input 1x3x224x224
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm, padded to keep the size."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; a 1×1 convolution on the shortcut where the shape changes (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3)
        self.shortcut = convolution(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def resnet18() -> nn.Module:
    """[batch, 3, 224, 224] -> [batch, 1000]"""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [BasicBlock(i, o, 1 if i == o else 2) for i, o in pairwise(widths)]
    stem = [convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def vgg11() -> nn.Module:
    """[batch, 3, 224, 224] -> [batch, 1000] (Simonyan & Zisserman 2014, without batch norm)"""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = [
        nn.Linear(512 * 49, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
    ]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(4096, 1000))


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise, 1×1 projection without activation (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [convolution(inputs, hidden, 1), nn.ReLU6()]
        layers += [
            convolution(hidden, hidden, 3, stride, hidden),
            nn.ReLU6(),
            convolution(hidden, outputs, 1),
        ]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v2() -> nn.Module:
    """[batch, 3, 224, 224] -> [batch, 1000]"""
    layers: list[nn.Module] = [convolution(3, 32, 3, 2), nn.ReLU6()]
    inputs = 32
    for expansion, outputs, repeats, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(repeats):
            layers.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, expansion))
            inputs = outputs
    layers += [convolution(320, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, 1000))


def settled(network: nn.Module, size: int, seed: int = 0) -> nn.Module:
    """Random weights, batch-norm statistics settled on noise: activations of ordinary size in every layer."""
    torch.manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    network.train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(4, 3, size, size))
    return network.eval()
