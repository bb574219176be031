"""CIFAR-100 by a ResNet-20 that grows: what the thesis on dynamic network capacity planned (§5.4).

For whoever has the data and a GPU: `--data file.npz` (x uint8 [N, 32, 32, 3], y classes), or a folder of
images by class. Widths 16, 32 and 64, from 4, 8 and 16.
"""

from __future__ import annotations

from torch import nn

from nncompress.studies.growth.classifier import Plan, study
from nncompress.zoo.cifar_resnet import CifarResNet


def network(width: float, classes: int, channels: int) -> nn.Module:
    return CifarResNet(3, classes, channels, width=round(width * 16))


PLAN = Plan(
    "cifar100-growth",
    network,
    32,
    {
        "batch": 128,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "warmup": 1.0,
        "crop": 4,
        "flip": True,
    },
    epochs=160,
    quick_images=400,
    static="planned",
    dynamic="planned",
)


CIFAR100_GROWTH = study(PLAN, "CIFAR-100 by a ResNet-20 that grows from a quarter")
