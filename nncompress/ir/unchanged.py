"""Runs of a user's module leave it as it was: its tensors, its attributes, what its lists and dicts hold, and
what its code keeps elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from nncompress.ir.reached import Reached


def _uncompiled() -> AbstractContextManager[None]:
    """What would be compiled when it runs (torch.cond, flex_attention) is not: torch fails to, beside what
    watches the writes, and what it has kept of that makes later exports of the user's own fail."""
    return torch.compiler.set_stance("force_eager")


@contextmanager
def unchanged(module: nn.Module, *, traced: bool = False) -> Iterator[None]:
    """Whatever runs of `module` do inside to its attributes and tensors is undone after.

    A tensor is kept when it is first written to, so that a module that changes nothing costs no memory.

    Args:
        traced: `torch.export` runs it, which writes to no parameter or buffer: the few other tensors are kept
            beforehand, since watching every write would take a third of its time.
    """
    reached = Reached(module)
    memories = [
        (tensor, tensor.data) for tensor in reached.tensors if not tensor.is_nested
    ]  # without a shape
    writes = _Writes(reached.tensors)
    try:
        if traced:
            writes.keep_all_but([*module.parameters(), *module.buffers()])
        with nullcontext() if traced else _uncompiled(), nullcontext() if traced else writes:
            yield
    finally:
        reached.restore()
        for tensor, memory in memories:  # what `tensor.data = …` has taken from it
            if not _is_same_window(tensor, memory):
                tensor.data = memory
        writes.undo()


def _is_same_window(one: Tensor, other: Tensor) -> bool:
    if one.device != other.device or one.shape != other.shape:
        return False
    if one.layout != torch.strided:
        return True
    windows = [(t.untyped_storage()._cdata, t.storage_offset(), t.stride()) for t in (one, other)]
    return windows[0] == windows[1]


class _Writes(TorchDispatchMode):
    """Keeps what the memory of `tensors` held before it was first written to."""

    supports_higher_order_operators = True  # torch.cond and loops, whose branches write to nothing of others

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._tensors = tensors
        self._owned = {
            tensor.untyped_storage()._cdata for tensor in tensors if tensor.layout == torch.strided
        }
        self._kept: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, OpOverload) and func._schema.is_mutable:
            for position, argument in enumerate(func._schema.arguments):
                if argument.is_write:
                    given = args[position] if position < len(args) else kwargs.get(argument.name)
                    for tensor in pytree.tree_leaves(given):
                        self._keep(tensor)
        return func(*args, **kwargs)

    def _keep(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage._cdata in self._owned and storage._cdata not in self._kept:
                with _disable_current_modes():  # a run without memory would copy none
                    self._kept[storage._cdata] = (storage, storage.clone())

    def keep_all_but(self, others: Iterable[Tensor]) -> None:
        """Keep the contents now, whoever writes to them later, but of memory that `others` look at."""
        known = {tensor.untyped_storage()._cdata for tensor in others if tensor.layout == torch.strided}
        for tensor in self._tensors:
            if tensor.layout == torch.strided and tensor.untyped_storage()._cdata not in known:
                self._keep(tensor)

    def undo(self) -> None:
        for storage, content in self._kept.values():
            storage.copy_(content)
