"""Finding the weights inside what a training script saved: under which key, under which prefix."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nncompress.dtypes import dtype_name
from nncompress.errors import ModelFileError, UsageError
from nncompress.loading.pickle.module_records import Record
from nncompress.loading.pickle.read import WEIGHT_KEYS, describe

_MOST_DEEP = 3
_MOST_KEYS = 1000  # of one table that is searched

Found = dict[str, Tensor] | nn.Module


def find_weights(
    found: Any, path: Path, notice: Callable[[str], None] = lambda sentence: None, key: str | None = None
) -> tuple[Found, str]:
    """The table of tensors, or the module, in what a checkpoint holds, up to three keys deep, and its key.

    Of several, the one under a key that training scripts use for the weights; `notice` is told of the others.

    Args:
        key: `--weights-key`: the one under these keys, joined by dots; or, below a table, the tensors whose
            names begin so.

    Raises:
        ModelFileError: there is none, or several under keys that tell nothing.
        UsageError: there is none under `key`.
    """
    tables = {".".join(at): table for at, table in _tables(found, (), set())}
    if not tables:
        what = "no weights"
        if _holds_arrays(found):
            what = "arrays of numpy, which are not read, and no tensors"
        elif isinstance(found, list | tuple) and any(isinstance(each, Tensor) for each in found):
            what = "tensors without names"
        raise ModelFileError(
            f"{path} holds {what}",
            got=describe(found),
            expected=f"a state_dict (names to tensors), or one under {', '.join(map(repr, WEIGHT_KEYS[:4]))}",
            remedy="save model.state_dict() with torch.save",
        )
    if key is not None:
        return _under(tables, key, path), key
    usual = [at for name in WEIGHT_KEYS for at in tables if at.rpartition(".")[2] == name]
    if len(tables) > 1 and not usual and "" not in tables:
        raise ModelFileError(
            f"{path} holds several tables of weights",
            got=", ".join(_shown(at) for at in tables)[:500],
            remedy=f"say which is meant: --weights-key {shlex.quote(next(iter(tables)))}",
        )
    chosen = next(iter(usual or tables)) if "" not in tables else ""
    if chosen:
        others = ", ".join([_shown(at) for at in tables if at != chosen][:5])
        beside = f"; not those under {others} (--weights-key takes another)" if others else ""
        notice(f"weights of {path} taken from {_shown(chosen)}{beside}")
    return tables[chosen], chosen


def in_float32(module: nn.Module, path: Path, notice: Callable[[str], None]) -> nn.Module:
    """A module that a training script keeps in half precision to save room, as it is run."""
    halves = {t.dtype for t in module.state_dict().values() if t.is_floating_point()}
    if len(halves) != 1 or not halves <= {torch.float16, torch.bfloat16}:
        return module
    notice(f"{path} keeps its module in {dtype_name(halves.pop())}; it is opened in float32")
    return module.float()


def _tables(value: Any, at: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], Found]]:
    """Tables of tensors; one with other values beside its tensors only where no table lies below it."""
    if isinstance(value, nn.Module):
        yield at, value
        return
    if isinstance(value, list | tuple):  # as a script saves several things: their places are the keys
        named = [(str(place), each) for place, each in enumerate(value[:_MOST_KEYS])]
        value = {place: each for place, each in named if not isinstance(each, Tensor)}
    if not isinstance(value, Mapping) or len(at) > _MOST_DEEP or id(value) in seen:
        return
    tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
    below = False
    if len(tensors) < len(value):
        seen.add(id(value))  # a short pickle can hold one table in many places, and those in many more
        for name, inner in list(value.items())[:_MOST_KEYS]:
            if isinstance(name, str) and "optim" not in name:  # an optimizer's moments are no weights
                for each in _tables(inner, (*at, name), seen):
                    below = True
                    yield each
    if tensors and not below:
        yield at, tensors


def _holds_arrays(value: Any, deep: int = 0) -> bool:
    """Whether arrays of numpy lie where tensors are looked for; they are kept unread."""
    if isinstance(value, Record):
        return value.of.startswith("numpy.")
    inner = list(value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ())
    return deep <= _MOST_DEEP and any(_holds_arrays(each, deep + 1) for each in inner[:_MOST_KEYS])


def _under(tables: Mapping[str, Found], key: str, path: Path) -> Found:
    if key in tables:
        return tables[key]
    for at, table in tables.items():
        start = f"{at}." if at else ""
        if not f"{key}.".startswith(start):
            continue
        prefix = f"{key}.".removeprefix(start)
        tensors = table.state_dict() if isinstance(table, nn.Module) else table
        below = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if below:
            return below
    raise UsageError(
        f"{path} has no weights under --weights-key {key[:80]}",
        expected=", ".join(_shown(at) for at in tables if at)[:500] or "no key: its weights lie at the top",
    )


def _shown(at: str) -> str:
    return repr(at)[:80]
