"""A module run on tensors without memory before it is run on real ones.

A short file can hold layers that ask for terabytes, at once (a padding of 2^40, an upsampling by 10^9) or one
after the other. So shapes are asked first.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nncompress.ir.torch_logs import unlogged
from nncompress.ir.unchanged import unchanged

MOST_GUESSED = 2**30  # bytes that a run has at a time, where nobody stated the input


class TooLarge(ValueError):
    """The tensors of the run would not fit."""


def dry_run(module: nn.Module, inputs: Sequence[Tensor], most: int) -> None:
    """Refuse a run whose tensors, weights and inputs aside, take more than `most` bytes at a time.

    A module that needs values is run on them, and every op is asked first for what it will take. An op's own
    workspace is not counted.

    Raises:
        TooLarge: it takes more.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with unlogged(), unchanged(module), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            without_memory = [fake.from_tensor(tensor) for tensor in inputs]
            with fake, _LiveBytes(most):
                module(*without_memory)
            return
        except TooLarge:
            raise
        except Exception:  # such as one that asks for a value
            pass
    with unlogged(), unchanged(module), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            with torch.random.fork_rng(devices=[]), _LiveBytes(most, asks=True):
                module(*(tensor.clone() for tensor in inputs))
        except TooLarge:
            raise
        except Exception:  # what does not run so is told by who runs it next
            return


# What these give depends on the values that they are given: rows of 8 bytes.
_ROWS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.repeat_interleave.Tensor: lambda repeats, **_: int(repeats.sum()),
    torch.ops.aten.bincount.default: lambda x, weights=None, minlength=0: max(
        int(x.max()) + 1 if x.numel() else 0, minlength
    ),
}


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that ops have made and that are still there.

    Args:
        most: more than these, in all or in one tensor, are refused.
        asks: each op is run without memory before it is run; those that only values could tell are `_ROWS`,
            or give no more than they are given.

    Raises:
        TooLarge: from the run inside.
    """

    def __init__(self, most: int, *, asks: bool = False) -> None:
        super().__init__()
        self._most = most
        self._fake = FakeTensorMode(allow_non_fake_inputs=True) if asks else None
        self._live = 0
        self._sizes: dict[int, tuple[int, weakref.ref[Any]]] = {}  # of storages, by id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._fake is not None:
            self._ask(self._fake, func, args, kwargs)
        result = func(*args, **kwargs)
        if all(each.alias_info is None for each in func._schema.returns):
            for value in _strided(result):
                self._check(value)
                self._count(value.untyped_storage())
        return result

    def _ask(self, fake: FakeTensorMode, func: Any, args: Any, kwargs: Any) -> None:
        if func in _ROWS:
            refuse_size((_ROWS[func](*args, **kwargs),), torch.int64, self._most - self._live)
            return
        if any(each.alias_info is not None for each in func._schema.returns):
            return
        try:
            with fake:
                would_be = func(*args, **kwargs)
        except Exception:  # only values could tell
            return
        for value in _strided(would_be):
            self._check(value)

    def _check(self, value: Tensor) -> None:
        known = value.untyped_storage()._cdata in self._sizes
        refuse_size(tuple(value.shape), value.dtype, self._most, 0 if known else self._live)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._live += storage.nbytes()
            self._sizes[key] = (storage.nbytes(), weakref.ref(storage, lambda _: self._forget(key)))

    def _forget(self, key: int) -> None:
        self._live -= self._sizes.pop(key)[0]


def _strided(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def refuse_size(shape: Sequence[int], dtype: torch.dtype, most: int, beside: int = 0) -> None:
    """Refuse a tensor that does not fit.

    Args:
        beside: bytes that are taken already.

    Raises:
        TooLarge: one of that shape takes more than `most` bytes, together with what is beside it.
    """
    taken = prod(shape) * dtype.itemsize
    if taken + beside > most:
        others = f", beside {beside / 1e9:.3g} GB of others" if beside else ""
        raise TooLarge(
            f"a tensor of {'×'.join(map(str, shape))[:200]} takes {taken / 1e9:.3g} GB{others}, "
            f"where all may have {most / 1e9:.3g} GB"
        )
