"""Writing back through a window: given new contents of `child = view(parent)`, what does `parent` hold?

| view                                          | the parent's new contents                          |
|-----------------------------------------------|----------------------------------------------------|
| the same elements in the same shape           | the child's                                        |
| another shape (view, flatten, squeeze, …)     | the child's, reshaped                              |
| other order of dims (permute, mT, movedim, …) | the child's, permuted back                         |
| slice, narrow, select                         | `slice_scatter`, `select_scatter`                  |
| one of several parts (split, chunk, unbind)   | all parts joined, this one replaced                |
| parts of complex numbers                      | joined again                                       |
| any other (unfold, diagonal, as_strided, …)   | the child's elements, each put at its place: the   |
|                                               | same view of the numbers 0, 1, 2, … says where     |
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.errors import UnsupportedError
from nncompress.ir.graph.ops import DROPOUTS, REORDERS, RESHAPES
from nncompress.ir.graph.places import place

aten = torch.ops.aten

Emit = Callable[..., fx.Node]  # emit(op, *args, **kwargs): a new node, with its "val"

_WHOLE = {
    *("alias", "detach", "detach_", "contiguous", "to", "type_as", "lift", "lift_fresh", "positive"),
    *("resolve_conj", "resolve_neg", "pin_memory", "_conj", "conj", "_neg_view"),
    *DROPOUTS,  # in evaluation
}
_RESHAPING = {
    *RESHAPES,
    *("view_as", "reshape_as", "ravel", "squeeze_", "unsqueeze_", "_reshape_alias"),
    *("atleast_1d", "atleast_2d", "atleast_3d"),
}
_REORDERING = {
    *REORDERS,
    *("numpy_T", "mT", "mH", "adjoint", "matrix_H", "swapdims", "swapaxes", "movedim", "moveaxis"),
    *("transpose_", "t_", "swapdims_", "swapaxes_"),
}
_PARTS = {"split", "split_with_sizes", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit"}
_EXPANDING = {"expand", "expand_as", "broadcast_to", "broadcast_tensors"}
# What they give depends on strides, which need not be those of the original once something was written.
NEEDS_LAYOUT = {"view", "view_as_complex", "as_strided"}
_END = 2**63 - 1


@dataclass(frozen=True)
class View:
    """One view op of the graph, as it can be applied again to other contents of its parent.

    Attributes:
        target, args, kwargs: the call; `source` stands in `args` where the parent belongs.
        part: which of several results the child is.
        parent, child: stand-ins (meta tensors) with sizes and flags.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: fx.Node
    part: int | None
    parent: Tensor
    child: Tensor

    @property
    def name(self) -> str:
        return str(self.target._schema.name).split("::")[-1]

    def argument(self, name: str, default: Any = None) -> Any:
        """The argument of that name in the op's schema."""
        for position, known in enumerate(self.target._schema.arguments):
            if known.name == name:
                given = self.args[position] if position < len(self.args) else self.kwargs.get(name)
                return known.default_value if given is None and known.default_value is not None else given
        return default

    def apply(self, emit: Emit, parent: fx.Node) -> fx.Node:
        """The view of `parent`, whatever the layout of its memory."""
        if self.name == "view" and self.child.dtype == self.parent.dtype:
            args = fx.map_arg(self.args, lambda node: parent if node is self.source else node)
            return emit(aten.reshape.default, *args, **self.kwargs)
        if self.name in NEEDS_LAYOUT:
            parent = emit(aten.contiguous.default, parent)
        result = self._call(emit, parent)
        return result if self.part is None else emit(operator.getitem, result, self.part)

    def write_back(self, emit: Emit, parent: fx.Node, child: fx.Node) -> fx.Node:
        """The contents of the parent, which held `parent`, once its view holds `child`."""
        if self.child.is_conj() != self.parent.is_conj():
            child = emit(aten.conj_physical.default, child)
        name = self.name
        if name in _WHOLE:
            return emit(aten.neg.default, child) if name == "_neg_view" else child
        if name in _EXPANDING and self.child.numel() == self.parent.numel():
            return emit(aten.reshape.default, child, sizes_of(emit, parent))
        if name in _RESHAPING and self.child.dtype == self.parent.dtype:
            return emit(aten.reshape.default, child, sizes_of(emit, parent))
        if name in _REORDERING:
            return emit(aten.permute.default, child, self._way_back())
        if name in _PARTS or name == "unbind":
            return self._joined(emit, parent, child)
        return self._scattered(emit, parent, child)

    def _call(self, emit: Emit, parent: fx.Node) -> fx.Node:
        def fill(node: fx.Node) -> fx.Node:
            return parent if node is self.source else node

        return emit(self.target, *fx.map_arg(self.args, fill), **fx.map_arg(self.kwargs, fill))

    def _way_back(self) -> list[int]:
        """The order of dims that undoes this one, found on a tensor whose sizes are all different."""
        sizes = [dim + 2 for dim in range(self.parent.dim())]
        probe = torch.empty(sizes, device="meta", dtype=self.parent.dtype)
        args = fx.map_arg(self.args, lambda node: probe if node is self.source else node)
        kwargs = fx.map_arg(self.kwargs, lambda node: probe if node is self.source else node)
        moved = self.target(*args, **kwargs)
        return [list(moved.shape).index(size) for size in sizes]

    def _joined(self, emit: Emit, parent: fx.Node, child: fx.Node) -> fx.Node:
        assert self.part is not None
        whole = self._call(emit, parent)
        dim = self.argument("dim", {"hsplit": min(1, self.parent.dim() - 1), "dsplit": 2}.get(self.name, 0))
        count = len(_value(whole))
        parts = [child if i == self.part else emit(operator.getitem, whole, i) for i in range(count)]
        return emit(aten.stack.default if self.name == "unbind" else aten.cat.default, parts, dim)

    def _scattered(self, emit: Emit, parent: fx.Node, child: fx.Node) -> fx.Node:
        dim = self.argument("dim", 0)
        match self.name:
            case "slice":
                start, end, step = (self.argument(key) for key in ("start", "end", "step"))
                if start in (None, 0) and end in (None, _END) and step in (None, 1):
                    return child
                return emit(aten.slice_scatter.default, parent, child, dim, start, end, step or 1)
            case "narrow" if isinstance(start := self.argument("start"), int):
                length = self.argument("length")
                if isinstance(length, int) and (start >= 0 or start + length < 0):
                    return emit(aten.slice_scatter.default, parent, child, dim, start, start + length)
            case "select":
                return emit(aten.select_scatter.default, parent, child, dim, self.argument("index"))
            case "real" if not self.parent.is_complex():
                return child
            case "real":
                return emit(aten.complex.default, child, emit(aten.imag.default, parent))
            case "imag":
                return emit(aten.complex.default, emit(aten.real.default, parent), child)
            case "view_as_real":
                return emit(aten.view_as_complex.default, child)
            case "view_as_complex":
                return emit(aten.view_as_real.default, child)
            case "view" if self.child.dtype != self.parent.dtype:
                return emit(aten.view.dtype, child, self.parent.dtype)
        return self._put(emit, parent, child)

    def _put(self, emit: Emit, parent: fx.Node, child: fx.Node) -> fx.Node:
        """Any view: the places of its elements are what it makes of 0, 1, 2, … in the parent's shape."""
        flat = emit(aten.reshape.default, parent, [-1])
        counted = emit(aten.cumsum.default, emit(aten.ones_like.default, flat, dtype=torch.int64), 0)
        places = emit(aten.reshape.default, emit(aten.sub.Tensor, counted, 1), sizes_of(emit, parent))
        index = emit(aten.reshape.default, self.apply(emit, places), [-1])
        values = emit(aten.reshape.default, child, [-1])
        whole = emit(aten.index_put.default, flat, [index], values)
        return emit(aten.reshape.default, whole, sizes_of(emit, parent))


def sizes_of(emit: Emit, node: fx.Node) -> Sequence[int | fx.Node]:
    """The sizes of a node: numbers where they are fixed, nodes that read them off where they are not."""
    shape = _value(node).shape
    return [
        size if isinstance(size, int) else emit(aten.sym_size.int, node, dim)
        for dim, size in enumerate(shape)
    ]


def _value(node: fx.Node) -> Any:
    if "val" not in node.meta:
        raise UnsupportedError(f"a write to a view cannot be followed: {place(node)}")
    return node.meta["val"]
