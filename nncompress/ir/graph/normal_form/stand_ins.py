"""Which values of a graph share memory, seen on stand-ins: tensors without contents, of the same layout.

No op is listed. One whose schema says that its result may be a window on an argument, or which is composed of
others and so may hand an argument on (dropout in eval mode does), is run on stand-ins, and the memory of its
result is looked at. Any other op's result has memory of its own.
"""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

_PROBE_SIZES = (7, 11, 13, 17, 19, 23, 29, 31)  # of dynamic dims, all different


def shared(one: Tensor, other: Tensor) -> bool:
    """Do they look at the same memory?"""
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


class StandIns:
    """Stand-ins for the results of a graph's nodes, made in the graph's order.

    Attributes:
        of: node -> meta tensor, number, or list of them.
    """

    def __init__(self) -> None:
        self.of: dict[fx.Node, Any] = {}
        self._memory: dict[int, torch.UntypedStorage] = {}  # of stored tensors
        self._sizes: dict[Any, Any] = {}  # symbol -> the number in its place

    def result(self, node: fx.Node) -> Any:
        """A stand-in for the node's result, which shares memory where the result does."""
        target = node.target
        if node.op != "call_function":
            return self.recorded(node)
        if target is not operator.getitem and not (isinstance(target, OpOverload) and _may_hand_on(target)):
            return self.recorded(node)
        try:
            return self.run(target, node)
        except Exception:  # sizes that depend on data, say: the schema tells then
            found = self.recorded(node)
            tensors = [given for given in map(self.of.get, node.all_input_nodes) if isinstance(given, Tensor)]
            if not isinstance(found, Tensor) or not _is_view(target) or not tensors:
                return found
            window = torch.empty(0, dtype=found.dtype, device="meta")
            return window.set_(tensors[0].untyped_storage(), 0, found.shape, [0] * found.dim())

    def run(self, target: Any, node: fx.Node) -> Any:
        """`target`, called with the stand-ins of the node's arguments."""

        def on_meta(value: Any) -> Any:
            return torch.device("meta") if isinstance(value, torch.device) else value

        args, kwargs = fx.map_arg((node.args, node.kwargs), self.of.__getitem__)
        args, kwargs = fx.node.map_aggregate((args, kwargs), on_meta)
        with torch.no_grad():
            return target(*args, **kwargs)

    def stored(self, tensor: Tensor) -> Tensor:
        """A stand-in for a parameter or buffer; those that share memory have stand-ins that do."""
        storage = tensor.untyped_storage()
        fresh = torch.UntypedStorage(storage.nbytes(), device="meta")
        memory = self._memory.setdefault(storage._cdata, fresh)
        window = torch.empty(0, dtype=tensor.dtype, device="meta")
        return window.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())

    def recorded(self, node: fx.Node) -> Any:
        """The result that the export recorded, with every symbol put to a number; its memory is its own."""
        return self._concrete(node.meta.get("val"))

    def _concrete(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            shape, stride = map(self._number, value.shape), map(self._number, value.stride())
            return torch.empty_strided(tuple(shape), tuple(stride), dtype=value.dtype, device="meta")
        if isinstance(value, torch.SymInt):
            return self._number(value)
        if isinstance(value, list | tuple):
            return [self._concrete(item) for item in value]
        return value

    def _number(self, size: Any) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in self._sizes:
                wanted = _PROBE_SIZES[len(self._sizes) % len(_PROBE_SIZES)]
                bounds = size.node.shape_env.var_to_range.get(symbol)
                inside = min(max(wanted, bounds.lower), bounds.upper) if bounds is not None else wanted
                self._sizes[symbol] = sympy.Integer(int(inside))
        return max(int(expression.xreplace(self._sizes)), 0)


def _is_view(target: Any) -> bool:
    return isinstance(target, OpOverload) and any(r.alias_info is not None for r in target._schema.returns)


def _may_hand_on(target: OpOverload) -> bool:
    """Its result can be a window on an argument, by its schema or because it is composed of other ops."""
    composed = torch._C.DispatchKey.CompositeImplicitAutograd
    return _is_view(target) or target.has_kernel_for_dispatch_key(composed)
