"""Four networks that differ in one operation: what can stand for a convolution (Çallı 2017, §2.3.4).

Three 5×5 convolutions with bias, batch norm and ReLU, max pooling after the first two, global average pooling
after the third, one fully connected layer. The second and third convolution are replaced; the first stays,
because nothing is saved on 3 input channels. The widths are those of the draft's Table 2.2: 32, 64, 128.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress.zoo.initialize import he

KERNEL, WIDTHS = 5, (32, 64, 128)


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, KERNEL, padding=KERNEL // 2)


def _kernel_composing(inputs: int, outputs: int) -> nn.Module:
    """1×K to `outputs` channels, bias and ReLU, K×1 (Alvarez and Petersson 2016)."""
    half = KERNEL // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, (1, KERNEL), padding=(0, half)),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, (KERNEL, 1), padding=(half, 0)),
    )


def _separable(inputs: int, outputs: int) -> nn.Module:
    depthwise = nn.Conv2d(inputs, inputs, KERNEL, padding=KERNEL // 2, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1))


def _nonlinear_separable(inputs: int, outputs: int) -> nn.Module:
    """Batch norm and ReLU between the two (Howard et al. 2017)."""
    depthwise = nn.Conv2d(inputs, inputs, KERNEL, padding=KERNEL // 2, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1))


class Alternatives(nn.Module):
    """[batch, channels, height, width] -> [batch, classes]."""

    def __init__(self, operation: Callable[[int, int], nn.Module], classes: int, channels: int) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.conv1, self.bn1 = _convolution(channels, first), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = operation(first, second), nn.BatchNorm2d(second)
        self.conv3, self.bn3 = operation(second, third), nn.BatchNorm2d(third)
        self.linear = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.conv3(x)))
        return self.linear(torch.mean(x, (2, 3)))


def alternatives_convolution(classes: int = 10, channels: int = 3) -> nn.Module:
    """The baseline."""
    return he(Alternatives(_convolution, classes, channels))


def alternatives_kernel_composing(classes: int = 10, channels: int = 3) -> nn.Module:
    """1×5 then 5×1 convolutions."""
    return he(Alternatives(_kernel_composing, classes, channels))


def alternatives_separable(classes: int = 10, channels: int = 3) -> nn.Module:
    """Depthwise then pointwise convolutions."""
    return he(Alternatives(_separable, classes, channels))


def alternatives_nonlinear_separable(classes: int = 10, channels: int = 3) -> nn.Module:
    """Depthwise and pointwise convolutions with batch norm and ReLU between them."""
    return he(Alternatives(_nonlinear_separable, classes, channels))
