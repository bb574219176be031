"""Runs of a user's module leave it as it was: its tensors, its attributes, what its lists and dicts hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_PLAIN = (int, float, complex, str, bytes, type(None), type, ModuleType, FunctionType, BuiltinFunctionType)
_Contents = list[tuple[Any, Any]]  # containers, and what each held


@contextmanager
def unchanged(module: nn.Module, *, traced: bool = False) -> Iterator[None]:
    """Whatever runs of `module` do inside to its attributes and tensors is undone after.

    A tensor is kept when it is first written to, so that a module that changes nothing costs no memory.

    Args:
        traced: `torch.export` runs it, which writes to no parameter or buffer: the few other tensors are kept
            beforehand, since watching every write would take a third of its time.
    """
    tensors, contents = _held_by(module)
    memories = [(tensor, tensor.data) for tensor in tensors]
    writes = _Writes(tensors)
    try:
        if traced:
            writes.keep_all_but([*module.parameters(), *module.buffers()])
        with nullcontext() if traced else writes:
            yield
    finally:
        for container, content in contents:
            _restore(container, content)
        for tensor, memory in memories:  # what `tensor.data = …` has taken from it
            if not _is_same_window(tensor, memory):
                tensor.data = memory
        writes.undo()


def _held_by(module: nn.Module) -> tuple[list[Tensor], _Contents]:
    """Tensors that it reaches through attributes, containers and objects of any depth, and these containers.

    Torch's own objects beside modules are none of a model's state (graphs, generators).
    """
    tensors: list[Tensor] = []
    contents: _Contents = []
    seen: dict[int, Any] = {}  # the objects themselves, so that no other takes their id
    found: list[Any] = [module]
    while found:
        each = found.pop()
        if isinstance(each, _PLAIN) or id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, Tensor):
            tensors.append(each)
        elif isinstance(each, torch.jit.ScriptModule):  # its tables are views of what C++ holds
            tensors += [*each.parameters(), *each.buffers()]
        elif isinstance(each, dict):
            contents.append((each, dict(each)))
            found += contents[-1][1].values()
        elif isinstance(each, (list, set, deque)):
            contents.append((each, each.copy()))
            found += each
        elif isinstance(each, tuple):
            found += each
        elif isinstance(each, nn.Module) or not type(each).__module__.startswith("torch."):
            found.append(getattr(each, "__dict__", None))
    return tensors, contents


def _restore(container: Any, content: Any) -> None:
    if isinstance(content, dict):
        same = list(container) == list(content) and all(container[key] is content[key] for key in content)
    else:
        same = len(container) == len(content) and all(a is b for a, b in zip(container, content))
    if not same:
        container.clear()
        container.update(content) if isinstance(content, dict | set) else container.extend(content)


def _is_same_window(one: Tensor, other: Tensor) -> bool:
    if one.device != other.device or one.shape != other.shape:
        return False
    if one.layout != torch.strided:
        return True
    windows = [(t.untyped_storage()._cdata, t.storage_offset(), t.stride()) for t in (one, other)]
    return windows[0] == windows[1]


class _Writes(TorchDispatchMode):
    """Keeps what the memory of `tensors` held before it was first written to."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._tensors = tensors
        self._owned = {
            tensor.untyped_storage()._cdata for tensor in tensors if tensor.layout == torch.strided
        }
        self._kept: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
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
