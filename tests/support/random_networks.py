"""Random small networks of every kind, as hypothesis draws and shrinks them.

A `Net` is a few names and small integers; `module(net)` builds it. A layer that does not fit where it would
stand is left out. Initialisations that are constant are perturbed and batch norms settled on noise, as in
`networks.py`: `depends_on_its_input` tells whether a comparison of outputs could prove anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from random_layers import LAYERS, NAMES, Shape
from torch import Tensor, nn

from nncompress.ir import Model

SOURCES: dict[str, Shape] = {
    "image": (4, 8, 8), "wide image": (6, 5, 7), "sequence": (6, 12), "signal": (4, 16), "vector": (12,),
    "tokens": (6,),
}  # fmt: skip
HEADS = (
    "classes",
    "classes",
    "value and classes",
    "no head",
    "hidden",
    "integer",
    "boolean",
    "masked",
    "number",
)
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}


@dataclass(frozen=True)
class Net:
    """`layers` are names of `random_layers` with two numbers each; `second` adds a second input."""

    source: str
    layers: tuple[tuple[str, int, int], ...]
    head: str = "classes"
    second: bool = False
    dtype: str = "float32"
    seed: int = 0


def nets(*, dtypes: tuple[str, ...] = ("float32",), heads: tuple[str, ...] = HEADS) -> st.SearchStrategy[Net]:
    numbers = st.integers(0, 35)
    layer = st.tuples(st.sampled_from(NAMES), numbers, numbers)
    return st.builds(
        Net,
        source=st.sampled_from(list(SOURCES)),
        layers=st.lists(layer, min_size=2, max_size=7).map(tuple),
        head=st.sampled_from(heads),
        second=st.sampled_from([False, False, True]),
        dtype=st.sampled_from(dtypes),
        seed=st.integers(0, 3),
    )


class Built(nn.Module):
    """The network of a `Net`."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        shape = SOURCES[net.source]
        self.net = net
        self.embedding = nn.Embedding(20, 8) if net.source == "tokens" else None
        self.layers = nn.ModuleList()
        shape = (6, 8) if self.embedding is not None else shape
        for name, a, b in net.layers:
            make = LAYERS[len(shape)].get(name)
            found = None if make is None else _fitting(make, shape, a, b)
            if found is not None:
                self.layers.append(found[0])
                shape = found[1]
        width = shape[0]
        self.side = nn.Linear(5, width) if net.second else None
        self.hidden = nn.Linear(width, 10) if net.head != "no head" else None
        self.classes = nn.Linear(10, 5) if net.head != "no head" else None
        self.value = nn.Linear(10, 1) if net.head == "value and classes" else None
        self.register_buffer("off", torch.tensor([False, False, True, False, False]))

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        x = x if self.embedding is None else self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        if x.dim() > 2:
            x = x.flatten(2).mean(2)
        if self.side is not None:
            x = x + torch.tanh(self.side(more[0]))
        if self.hidden is None:
            return x
        x = torch.relu(self.hidden(x))
        y = self.classes(x)
        head = self.net.head
        if head == "value and classes":
            return {"value": self.value(x), "classes": y}
        if head == "hidden":
            return y, x
        if head == "integer":
            return y.argmax(-1)
        if head == "boolean":
            return y > 0, y
        if head == "masked":
            return y.masked_fill(self.off, float("-inf"))
        if head == "number":
            return y, y.square().mean()
        return y


def _fitting(make: Any, shape: Shape, a: int, b: int) -> tuple[nn.Module, Shape] | None:
    """A layer and the shape that it gives; None where it cannot stand here or would grow too large."""
    try:
        made = make(shape, a, b).eval()
        with torch.no_grad():
            given = tuple(made(torch.randn(2, *shape)).shape)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    fits = given[0] == 2 and 2 <= len(given) <= 4 and 0 < torch.Size(given).numel() <= 4096
    return (made, given[1:]) if fits and min(given) > 0 else None


def inputs(net: Net, batch: int, seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *SOURCES[net.source])
    if net.source == "tokens":
        first = torch.randint(0, 20, shape, generator=generator)
    else:
        first = torch.randn(shape, generator=generator).to(DTYPES[net.dtype])
    more = (torch.randn(batch, 5, generator=generator).to(DTYPES[net.dtype]),) if net.second else ()
    return (first, *more)


def module(net: Net) -> nn.Module:
    """In eval mode; settled in float32, then converted."""
    torch.manual_seed(net.seed)
    made = Built(net)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        made.train()
        settling = Net(net.source, net.layers, net.head, net.second)
        for step in range(4):
            made(*inputs(settling, 16, seed=100 + step))
    return made.eval().to(DTYPES[net.dtype])


def model(net: Net) -> Model:
    return Model.from_module(module(net), inputs(net, 2))


def depends_on_its_input(net: Net, made: nn.Module) -> bool:
    """Are the outputs finite (but where they are masked) and different for different inputs?"""
    with torch.no_grad():
        first, second = (leaves(made(*inputs(net, 4, seed))) for seed in (1, 2))
    for a, b in zip(first, second):
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()) or (net.head != "masked" and not finite.all()):
            return False
    moved = [(a[a.isfinite()].double() - b[b.isfinite()].double()).norm() for a, b in zip(first, second)]
    sizes = [a[a.isfinite()].double().norm() for a in first]
    return bool(max(m / s.clamp_min(1e-6) for m, s in zip(moved, sizes)) > 1e-2)


def leaves(value: Any) -> list[Tensor]:
    return (
        [value] if isinstance(value, Tensor) else list(value.values() if isinstance(value, dict) else value)
    )


__all__ = ["DTYPES", "Net", "depends_on_its_input", "inputs", "leaves", "model", "module", "nets"]
