"""What a network's code keeps outside of the network holds tensors of the user alone, whoever loads it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nncompress
from nncompress.ir.reached import Reached
from nncompress.ir.unchanged import unchanged


def causal(length: int) -> Tensor:
    return torch.full((length, length), -math.inf).triu(1)


@functools.cache
def memoised(length: int) -> Tensor:
    return causal(length)


def remembering(function: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    known: dict[int, Tensor] = {}

    def remembered(length: int) -> Tensor:
        if length not in known:
            known[length] = function(length)
        return known[length]

    return remembered


in_a_closure = remembering(causal)
MASKS: dict[int, Tensor] = {}
latest: Tensor | None = None


def in_a_global(length: int) -> Tensor:
    global latest
    if latest is None:
        latest = causal(length)
    return MASKS.setdefault(length, latest)


def in_a_default(length: int, known: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    return known.setdefault(length, causal(length))


class Attention(nn.Module):
    shared: dict[int, Tensor] = {}  # noqa: RUF012
    newest: Tensor | None = None

    def __init__(self, mask: str) -> None:
        super().__init__()
        self.kind, self.q, self.out = mask, nn.Linear(6, 6), nn.Linear(6, 3)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def memoised(self, length: int) -> Tensor:
        return causal(length)

    def mask(self, length: int) -> Tensor:
        if self.kind == "method":
            return self.memoised(length)
        if self.kind == "class":
            if type(self).newest is None:
                type(self).newest = causal(length)
            return self.shared.setdefault(length, type(self).newest)
        places = {
            "function": memoised,
            "closure": in_a_closure,
            "global": in_a_global,
            "default": in_a_default,
        }
        return places[self.kind](length)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 6)
        for _ in range(2):
            q = self.q(x)
            x = (q @ x.mT + self.mask(x.shape[1])).softmax(-1) @ x
        return self.out(x)


KINDS = ["method", "function", "class", "closure", "global", "default"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_mask_is_loaded_and_its_cache_is_none_the_worse(kind: str) -> None:
    net, x = Attention(kind).eval(), torch.randn(3, 4, 6)
    model = nncompress.load(net, input=torch.randn(2, 4, 6))
    with torch.no_grad():
        expected = net(x)  # of a fake tensor that a trace left, it would be another
    assert type(expected) is Tensor
    torch.testing.assert_close(model(x), expected)
    kept = net.mask(4)
    nncompress.load(net, input=torch.randn(2, 4, 6))
    assert kind in ("method", "function") or net.mask(4) is kept  # what was memoised may be computed again


class Shouts(dict[str, Any]):
    """Makes a new object whenever it is asked for one, as registries of activations do."""

    def __getitem__(self, key: str) -> Any:
        raise AssertionError("nobody calls it")

    def __iter__(self) -> Any:
        return super().__iter__()


REGISTRY = Shouts(relu=torch.relu)


def test_looking_for_what_changes_calls_nothing() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if "relu" in REGISTRY else -x

    net = Net()
    with unchanged(net):
        net(torch.ones(2))
    assert dict.items(REGISTRY) == {("relu", torch.relu)}


class Asserts(nn.Module):
    """Its assert leads to what pytest keeps; a tensor of several lengths has no shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.lengths = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2
        return self.layer(x)


def test_what_a_test_runner_keeps_is_no_state_of_a_module() -> None:
    net = Asserts().eval()
    assert {id(each) for each in Reached(net).tensors} == {
        id(each) for each in (*net.parameters(), net.lengths)
    }
    with unchanged(net), torch.no_grad():
        net(torch.ones(1, 4))
