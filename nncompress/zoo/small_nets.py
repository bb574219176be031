"""The small networks that the papers prune and grow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nncompress.zoo.initialize import xavier


def summation(hidden: int = 1000) -> nn.Module:
    """[batch, 2] -> [batch, 1]: y = x1 + x2 by one hidden ReLU layer (Çallı 2017, §2.1.3)."""
    return xavier(nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1)))


def sine(hidden: int = 500) -> nn.Module:
    """[batch, 1] -> [batch, 1]: sin x on [−2π, 2π] by one hidden ReLU layer (thesis on growth, §5.2)."""
    return xavier(nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1)))


class Autoencoder(nn.Module):
    """[batch, 1, 28, 28] -> the same: 1-32-64-32-1 nodes (Çallı 2017, §2.1.3 and Figure 3.1)."""

    def __init__(self, nodes: tuple[int, int, int] = (32, 64, 32), channels: int = 1) -> None:
        super().__init__()
        first, middle, last = nodes
        self.encoder1 = nn.Conv2d(channels, first, 3, stride=2, padding=1)  # 28 -> 14
        self.bn1 = nn.BatchNorm2d(first)
        self.encoder2 = nn.Conv2d(first, middle, 3, stride=2, padding=1)  # 14 -> 7
        self.bn2 = nn.BatchNorm2d(middle)
        self.decoder1 = nn.ConvTranspose2d(middle, last, 3, stride=2, padding=1, output_padding=1)
        self.bn3 = nn.BatchNorm2d(last)
        self.decoder2 = nn.ConvTranspose2d(last, channels, 3, stride=2, padding=1, output_padding=1)
        self.bn4 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.encoder1(x)))
        x = torch.relu(self.bn2(self.encoder2(x)))
        x = torch.relu(self.bn3(self.decoder1(x)))
        return torch.tanh(self.bn4(self.decoder2(x)))


def mnist_autoencoder(channels: int = 1) -> nn.Module:
    """[batch, 1, 28, 28] -> the same, in [−1, 1]."""
    return xavier(Autoencoder(channels=channels))


def mnist_classifier(
    classes: int = 10, channels: int = 1, nodes: tuple[int, int, int] = (32, 64, 128)
) -> nn.Module:
    """[batch, 1, 28, 28] -> [batch, classes] (Çallı's draft, Table 2.2)."""
    first, second, third = nodes
    return xavier(
        nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(second, third, 7),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(third, classes),
        )
    )
