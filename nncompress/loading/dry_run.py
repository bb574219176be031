"""A module run on tensors without memory before it is run on real ones, and what its weights take.

A short file can hold layers that ask for terabytes: a padding of 2^40, an upsampling by 10^9. So shapes are
asked first.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nncompress.ir.graph.torch_logs import unlogged
from nncompress.loading.compare import unchanged

MOST_GUESSED = 2**30  # bytes of one tensor, where nobody stated the input
MOST_REPEATED = 2**27  # bytes that weights may take beyond those stored, by strides of 0


class TooLarge(ValueError):
    """A tensor of the run would not fit."""


def memory() -> int:
    """Bytes that this process may have: the machine's, or its own limit."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource  # which Windows does not have
    except ImportError:
        return there
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return there if limit == resource.RLIM_INFINITY else min(limit, there)


def most_bytes() -> int:
    """What one tensor of a run may take."""
    return memory() // 4


def dry_run(module: nn.Module, inputs: Sequence[Tensor], most: int) -> None:
    """Refuse a run one of whose tensors takes more than `most` bytes; a module that needs values is not run.

    Raises:
        TooLarge: there is one.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with unlogged(), unchanged(module), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            without_memory = [fake.from_tensor(tensor) for tensor in inputs]
            with fake, _Sizes(most):
                module(*without_memory)
        except TooLarge:
            raise
        except Exception:  # what does not run so is told by the run on real tensors
            return


class _Sizes(TorchDispatchMode):
    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                refuse_size(tuple(value.shape), value.dtype, self._most)
        return result


def refuse_size(shape: Sequence[int], dtype: torch.dtype, most: int) -> None:
    """Refuse a tensor that does not fit.

    Raises:
        TooLarge: one of that shape takes more than `most` bytes.
    """
    taken = prod(shape) * dtype.itemsize
    if taken > most:
        raise TooLarge(
            f"a tensor of {'×'.join(map(str, shape))[:200]} takes {taken / 1e9:.3g} GB, "
            f"where one may have {most / 1e9:.3g} GB"
        )


def repeated_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes that these take as copies beyond those stored: strides of 0, views that overlap."""
    distinct = {}
    for tensor in tensors:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            view = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
            distinct[storage._cdata, view] = (tensor.numel() * tensor.element_size(), storage.nbytes())
    taken: dict[int, int] = {}
    for (storage, _), (size, _) in distinct.items():
        taken[storage] = taken.get(storage, 0) + size
    stored = {storage: nbytes for (storage, _), (_, nbytes) in distinct.items()}
    return sum(max(0, size - stored[storage]) for storage, size in taken.items())
