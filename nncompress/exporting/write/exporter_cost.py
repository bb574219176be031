"""What torch's ONNX exporter works out anew in every call, kept from the first: half of a small export.

It reads the source of its 900 translations, and asks the dispatcher for all composite ops once for each
namespace. Both are internal to torch; where a version has them no more, it does what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_first: dict[Any, Any] = {}  # the registry that torch made, by how it was asked for


@contextmanager
def kept() -> Iterator[None]:
    """Meanwhile `torch.onnx.export` starts from a copy of the translations that it read the first time."""
    import torch._export.utils as composites
    from torch.onnx._internal.exporter import _registration

    with ExitStack() as undo:
        registry: Any = getattr(_registration, "ONNXRegistry", None)
        own = vars(registry).get("from_torchlib") if registry else None
        if own is not None:
            read = registry.from_torchlib
            undo.callback(setattr, registry, "from_torchlib", own)
            registry.from_torchlib = classmethod(lambda _, *how, **named: _copied(read, *how, **named))
        materialize = getattr(composites, "_materialize_cpp_cia_ops", None)
        if materialize is not None:
            materialize()  # what was registered since the last export is among them
            undo.callback(setattr, composites, "_materialize_cpp_cia_ops", materialize)
            setattr(composites, "_materialize_cpp_cia_ops", lambda: None)  # noqa: B010
        yield


def _copied(read: Callable[..., Any], *how: Any, **named: Any) -> Any:
    """A registry like the one that `read` gives, which translations can be added to."""
    key = (how, tuple(named.items()))
    if key not in _first:
        _first[key] = read(*how, **named)
    copied = type(_first[key])()
    vars(copied).update(vars(_first[key]))
    copied.functions = {target: list(found) for target, found in _first[key].functions.items()}
    return copied
