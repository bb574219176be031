"""Arguments of operators that no model has: indices, sizes and factors far outside its tensors."""

from __future__ import annotations

from random import Random
from typing import Any

import torch

SHAPES = [(2, 3, 4, 4), (2, 4, 6), (3, 4), (6,), (1, 2, 3, 4, 5), (2, 2)]
INDICES = [2**40, -(2**40), 10**7, -(10**7), 2**62, 7, -1, 0, 1]
NUMBERS = [1, 1, 1, 2, 2, 3, 0, -1, 4, 10**9, 2**40, -(2**40), 2**62]
FACTORS = [1.0, 0.5, 2.0, 0.0, -1.0, 1e30, 1e-30, float("nan"), float("inf")]
_INDEX_NAMES = (
    "ind",
    "offsets",
    "target",
    "sorter",
    "pivots",
    "lengths",
    "batch_sizes",
    "repeats",
    "mapping",
)
_PER_CHANNEL = ("bias", "running_mean", "running_var", "mean", "invstd", "save_mean", "input_lengths")


def value(kind: str, name: str, shape: tuple[int, ...], random: Random) -> Any:
    """Of an argument of that type and name, beside tensors of about that shape."""
    kind, optional = (kind[9:-1], True) if kind.startswith("Optional[") else (kind, False)
    if optional and random.random() < 0.4:
        return None
    if kind.startswith("List["):
        inner = kind[5:-1]
        count = random.choice([1, len(shape), max(len(shape) - 2, 1), 2, random.randrange(5)])
        return [value(inner, name, shape, random) for _ in range(count)]
    match kind:
        case "Tensor":
            return tensor(name, shape, random)
        case "int" | "SymInt":
            return random.choice(NUMBERS)
        case "number":
            return random.choice(NUMBERS + FACTORS)
        case "float":
            return random.choice(FACTORS)
        case "bool":
            return random.random() < 0.5
        case "str":
            return random.choice(["sum", "mean", "reflect", "floor", "none"])
        case "Device":
            return torch.device("cpu")
    return None


def usual_value(kind: str, name: str, rank: int, random: Random) -> Any:
    """Of an argument as most models have it: small sizes, all the same, so that they fit."""
    if kind.startswith("Optional["):
        return usual_value(kind[9:-1], name, rank, random) if random.random() < 0.7 else None
    if kind.startswith("List["):
        count = random.choice([1, 2, rank, rank - 2])
        return [usual_value(kind[5:-1], name, rank, random) for _ in range(count)]
    match kind:
        case "Tensor":
            return usual_tensor(name, rank, random)
        case "int" | "SymInt" | "number":
            return random.choice([0, 1, 1, 1, 2])
        case "float":
            return 0.5
    return value(kind, name, (2,) * rank, random)


def usual_tensor(name: str, rank: int, random: Random) -> torch.Tensor:
    """Two in every dim: of numbers or, where the name says so, of indices, which are in range."""
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    shape = (2,) * (1 if name in _PER_CHANNEL else rank)
    if any(part in name for part in _INDEX_NAMES):
        return torch.randint(0, 2, shape, generator=generator)
    if name in ("mask", "condition"):
        return torch.rand(shape, generator=generator) < 0.5
    return torch.rand(shape, generator=generator)


def tensor(name: str, shape: tuple[int, ...], random: Random) -> torch.Tensor:
    """Of about that shape; of indices where the name says so."""
    shape = random.choice(
        [shape, shape, shape, shape[1:2] or shape, shape[:1], (), (1,) * len(shape), (2**20,), shape[:1] * 2]
    )
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    if any(part in name for part in _INDEX_NAMES) or random.random() < 0.15:
        values = torch.randint(0, 2, shape, generator=generator)
        return torch.where(torch.rand(shape, generator=generator) < 0.3, random.choice(INDICES), values)
    if random.random() < 0.1:
        return torch.rand(shape, generator=generator) < 0.5
    floats = torch.rand(shape, generator=generator)
    if random.random() < 0.2:
        far = torch.tensor(
            random.choice(FACTORS) * 1e9, dtype=torch.float64
        ).float()  # 1e39 is infinite there
        return torch.where(torch.rand(shape, generator=generator) < 0.3, far, floats)
    return floats
