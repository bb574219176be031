"""What runs of a user's module could change: tensors, attributes, containers, and what its code reaches
beside them: globals, classes, closures and memoised functions."""

from __future__ import annotations

import functools
import sys
from collections import deque
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (int, float, complex, str, bytes, type(None), BuiltinFunctionType)
_TESTS = {"pytest", "_pytest", "pluggy"}  # which an assert in a test's own module leads to
_NOT_USERS = {"torch", "torchgen", "numpy", "nncompress", *_TESTS, *sys.stdlib_module_names}
_MACHINERY = {"torch", "logging", "threading"}  # whose objects, modules aside, hold nothing of a model
_ABSENT = object()
_MEMOISED: Any = type(functools.lru_cache(lambda: None))
_METHODS = (FunctionType, staticmethod, classmethod, property, functools.cached_property, _MEMOISED)


class Reached:
    """Everything that a module reaches, and how it was when this was made.

    Through attributes, containers and objects of any depth; and through the code that `forward` calls by
    name, as far as it is not torch's or Python's own. Torch's own objects beside modules are none of a
    model's state (graphs, generators), nor are loggers and locks.

    Attributes:
        tensors: among all that.
    """

    def __init__(self, module: nn.Module) -> None:
        self.tensors: list[Tensor] = []
        self._contents: list[tuple[Any, Any]] = []  # containers, and what each held
        self._names: list[tuple[Any, str, Any]] = []  # of a class or of a module's globals
        self._cells: list[tuple[CellType, Any]] = []
        self._memoised: dict[Any, int] = {}  # functions, and how often each had no answer yet
        self._called = {"forward"}  # names of attributes in code that was gone through
        self._not_called: dict[str, list[Any]] = {}  # methods of other names
        seen: dict[int, Any] = {}  # the objects themselves, so that no other takes their id
        found: list[Any] = [module]
        while found:
            each = found.pop()
            if not isinstance(each, _PLAIN) and id(each) not in seen:
                seen[id(each)] = each
                found += self._visit(each)

    def restore(self) -> None:
        """Put back what has changed; forget what was memoised in the meantime."""
        for container, content in self._contents:
            _restore(container, content)
        for holder, name, value in self._names:
            if _value(holder, name) is not value:
                _put(holder, name, value)
        for cell, value in self._cells:
            if (_ABSENT if _is_empty(cell) else cell.cell_contents) is not value:
                if value is _ABSENT:
                    del cell.cell_contents
                else:
                    cell.cell_contents = value
        for function, misses in self._memoised.items():
            if function.cache_info().misses != misses:
                function.cache_clear()

    def _visit(self, each: Any) -> list[Any]:
        """Keep what it holds, and return that."""
        match each:
            case Tensor():
                self.tensors.append(each)
                return []
            case torch.jit.ScriptModule():  # its tables are views of what C++ holds
                self.tensors += [*each.parameters(), *each.buffers()]
                return []
            case dict():
                content = dict(dict.items(each))  # some make a new object whenever they are asked for one
                self._contents.append((each, content))
                return list(content.values())
            case list() | set() | deque():
                self._contents.append((each, each.copy()))
                return list(each)
            case tuple():
                return list(each)
            case type():
                return self._visit_class(each) if _is_users(each.__module__) else []
            case FunctionType():
                return self._visit_function(each) if _is_users(each.__module__) else []
            case ModuleType():
                return []
            case MethodType():
                return [each.__func__, each.__self__]
            case staticmethod() | classmethod():
                return [each.__func__]
            case property():
                return [each.fget]
            case functools.partial():
                return [each.func, each.args, each.keywords]
            case functools.cached_property():
                return [each.func]
        if isinstance(each, _MEMOISED):
            self._memoised[each] = each.cache_info().misses
            return [each.__wrapped__]
        if isinstance(each, nn.Module) or str(type(each).__module__).split(".")[0] not in _MACHINERY:
            return [getattr(each, "__dict__", None), type(each)]
        return []

    def _visit_class(self, each: type) -> list[Any]:
        """Its attributes, methods as far as they are called; a class has no dict that could be written to."""
        found: list[Any] = [*each.__bases__]
        for name, value in vars(each).items():
            if _is_special(name):
                if isinstance(value, FunctionType) and not issubclass(each, nn.Module):
                    found.append(value)  # an operator calls it
                continue
            self._names.append((each, name, value))
            if name in self._called or not isinstance(value, _METHODS):
                found.append(value)
            else:
                self._not_called.setdefault(name, []).append(value)
        return found

    def _visit_function(self, each: FunctionType) -> list[Any]:
        cells = each.__closure__ or ()
        filled = [cell.cell_contents for cell in cells if not _is_empty(cell)]
        self._cells += [(cell, _ABSENT if _is_empty(cell) else cell.cell_contents) for cell in cells]
        found = [each.__dict__, each.__defaults__, each.__kwdefaults__, *filled]
        if not _is_users(each.__globals__.get("__name__")):  # a decorator of torch's
            return found
        names = _names_in(each.__code__)
        for name in names - self._called:
            found += self._not_called.pop(name, ())
        self._called |= names
        holders: list[Any] = [each.__globals__]
        for holder in holders:
            for name in names:
                value = _value(holder, name)
                self._names.append((holder, name, value))
                if isinstance(value, ModuleType):
                    if _is_users(value.__name__) and not any(vars(value) is known for known in holders):
                        holders.append(vars(value))
                elif value is not _ABSENT:
                    found.append(value)
        return found


def _is_users(module: str | None) -> bool:
    return str(module).split(".")[0] not in _NOT_USERS


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_empty(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (it raises where the name has no value yet)
    except ValueError:
        return True
    return False


def _names_in(code: CodeType) -> set[str]:
    """Of globals and attributes, in functions inside as well."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return {*code.co_names}.union(*map(_names_in, inner))


def _value(holder: Any, name: str) -> Any:
    return (vars(holder) if isinstance(holder, type) else holder).get(name, _ABSENT)


def _put(holder: Any, name: str, value: Any) -> None:
    if not isinstance(holder, type):
        holder.pop(name, None) if value is _ABSENT else holder.update({name: value})
    elif value is _ABSENT:
        delattr(holder, name)
    else:
        setattr(holder, name, value)


def _restore(container: Any, content: Any) -> None:
    if isinstance(content, dict):
        now = dict(dict.items(container))
        same = list(now) == list(content) and all(now[key] is content[key] for key in content)
    else:
        same = len(container) == len(content) and all(a is b for a, b in zip(container, content))
    if not same:
        container.clear()
        container.update(content) if isinstance(content, dict | set) else container.extend(content)
