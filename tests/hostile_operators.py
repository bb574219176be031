"""Calls of one operator with arguments that no model has: indices, sizes and factors far outside its tensors.

Run in a process of its own, because what is looked for kills it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import warnings
from pathlib import Path
from random import Random
from typing import Any

import torch

SHAPES = [(2, 3, 4, 4), (2, 4, 6), (3, 4), (6,), (1, 2, 3, 4, 5), (2, 2)]
INDICES = [2**40, -(2**40), 10**7, -(10**7), 2**62, 7, -1, 0, 1]
NUMBERS = [1, 1, 1, 2, 2, 3, 0, -1, 4, 10**9, 2**40, -(2**40), 2**62]
FACTORS = [1.0, 0.5, 2.0, 0.0, -1.0, 1e30, 1e-30, float("nan"), float("inf")]
MOST_SECONDS = 20  # of processor time, whatever else the machine does
MOST_WAITED = 900
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


def outcome(operator: Any, seed: int, tries: int) -> str:
    """ "" where every call returned or raised; else what became of the process: "killed by signal 11"."""
    child = os.fork()
    if child == 0:
        # the child must not return into the caller's frames
        try:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**29
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            signal.alarm(MOST_WAITED)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            _call_often(operator, Random(seed), tries)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else ""


def _call_often(operator: Any, random: Random, tries: int) -> None:
    warnings.simplefilter("ignore")
    for _ in range(tries):
        shape = random.choice(SHAPES)
        given = [
            a
            for a in operator._schema.arguments
            if not a.kwarg_only and (not a.has_default_value() or random.random() < 0.5)
        ]
        positional = []
        for argument in given:
            positional.append(_value(str(argument.type), argument.name, shape, random))
        required = {
            a.name: _value(str(a.type), a.name, shape, random)
            for a in operator._schema.arguments
            if a.kwarg_only and not a.has_default_value()
        }
        with contextlib.suppress(Exception), torch.no_grad():
            operator(*positional, **required)


def _value(kind: str, name: str, shape: tuple[int, ...], random: Random) -> Any:
    kind, optional = (kind[9:-1], True) if kind.startswith("Optional[") else (kind, False)
    if optional and random.random() < 0.4:
        return None
    if kind.startswith("List["):
        inner = kind[5:-1]
        count = random.choice([1, len(shape), max(len(shape) - 2, 1), 2, random.randrange(5)])
        return [_value(inner, name, shape, random) for _ in range(count)]
    match kind:
        case "Tensor":
            return _tensor(name, shape, random)
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


def _tensor(name: str, shape: tuple[int, ...], random: Random) -> torch.Tensor:
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
        return torch.where(torch.rand(shape, generator=generator) < 0.3, random.choice(FACTORS) * 1e9, floats)
    return floats
