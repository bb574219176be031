"""A small network with batch norm and dropout, and images whose class it can tell."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from nncompress.ir import Model


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            3, 6, 3, padding=1, bias=False
        )  # a bias before batch norm has no gradient but noise
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(F.relu(self.bn(self.conv(x))).mean((2, 3))))


def small(seed: int = 0) -> tuple[nn.Module, Model]:
    torch.manual_seed(seed)
    module = Small().eval()
    return module, Model.from_module(module, (torch.randn(2, 3, 8, 8),))


def same(a: Model, b: Model) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)
