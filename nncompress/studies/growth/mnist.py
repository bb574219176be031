"""MNIST by three convolutions that grow (the thesis on dynamic network capacity, §5.3 and §5.5).

The thesis does not say what its network was; ours is the classifier of Çallı's draft, Table 2.2: 32, 64 and
128 channels.
"""

from __future__ import annotations

from torch import nn

from nncompress.studies.growth.classifier import Plan, study
from nncompress.zoo.small_nets import mnist_classifier

NODES = (32, 64, 128)


def network(width: float, classes: int, channels: int) -> nn.Module:
    first, second, third = (round(width * n) for n in NODES)
    return mnist_classifier(classes, channels, (first, second, third))


PLAN = Plan(
    "mnist-growth",
    network,
    28,
    {"batch": 64, "optimizer": "adam", "lr": 0.002, "schedule": "cosine"},
    epochs=8,
    quick_images=400,
    static="99.37 %",
    dynamic="99.32 %",
    first="3.1x (36.6 s / 11.9 s)",
    overhead="1.035x (37.9 s / 36.6 s)",
)


MNIST_GROWTH = study(PLAN, "MNIST by a network that grows from a quarter")
