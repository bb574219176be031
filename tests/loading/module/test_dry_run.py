"""What a module would take is told before it is taken: each tensor, and all that are there at a time."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from nncompress.errors import UsageError
from nncompress.loading.module.dry_run import TooLarge, dry_run
from nncompress.loading.module.infer_input import infer_input

MOST = 200_000


class Copies(nn.Module):
    """Twenty tensors of 64,000 bytes, one after the other."""

    def __init__(self, *, asks: bool, keeps: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.asks, self.keeps = asks, keeps

    def forward(self, x):
        if self.asks and float(x.sum()) > 1e9:  # runs on tensors with values only
            x = x + 1
        held, copy = [], x
        for _ in range(20):
            copy = x.flatten()[:1].repeat(16_000)
            assert not held or held[-1].is_meta or len(held) * 64_000 <= MOST
            if self.keeps:
                held.append(copy)
        return copy


@pytest.mark.parametrize("asks", [False, True])
def test_tensors_that_are_kept_add_up(asks):
    x = torch.zeros(2, 3, 4, 4)
    dry_run(Copies(asks=asks, keeps=False), (x,), MOST)
    with pytest.raises(TooLarge, match=r"beside 0\.000192 GB of others"):
        dry_run(Copies(asks=asks, keeps=True), (x,), MOST)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(10**10),
        lambda: torch.zeros(1).expand(10**10).clone(),
        lambda: torch.repeat_interleave(torch.full((3,), 10**10)),
        lambda: torch.bincount(torch.full((3,), 10**10)),
        lambda: torch.bincount(torch.zeros(3, dtype=torch.int64), minlength=10**10),
    ],
)
def test_ops_whose_size_only_values_tell_are_asked_before_they_run(make):
    class Asks(nn.Module):
        def forward(self, x):
            return x + make().sum() * float(x.sum())

    class AsksFirst(nn.Module):
        def forward(self, x):
            return x * float(x.sum()) + make().sum()

    for module in (Asks(), AsksFirst()):
        with pytest.raises(TooLarge):
            dry_run(module, (torch.ones(2),), MOST)


def test_weights_and_views_of_them_take_nothing():
    dry_run(nn.Sequential(nn.Linear(1000, 10), nn.Linear(10, 1000)), (torch.zeros(2, 1000),), 20_000)


def test_no_guess_of_an_input_takes_more_in_all(monkeypatch):
    monkeypatch.setattr(import_module("nncompress.loading.module.infer_input"), "MOST_GUESSED", MOST)
    with pytest.raises(UsageError, match=r"where all may have 0\.0002 GB"):
        infer_input(Copies(asks=True, keeps=True))
