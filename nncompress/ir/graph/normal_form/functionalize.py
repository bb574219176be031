"""In-place ops out of a graph: a write becomes a new value, and whoever shares memory reads the new one.

Which values share memory is seen by running the ops on stand-ins (`stand_ins`). Every
value knows the window it is on its parent's memory (`views`). A write to it is carried
back to the parent, and from there to the root: an op's result, an input, a stored tensor. Whatever else looks
at that memory is viewed anew when it is read next. What remains of

- writes to an input: nothing, the caller's tensor stays as it is;
- writes to a stored tensor: one `next_state` at the end (`nncompress.ir.graph.state`);
- an op that writes and has no functional form: it writes to a copy of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from nncompress.errors import UnsupportedError
from nncompress.ir.graph.normal_form.stand_ins import StandIns, shared
from nncompress.ir.graph.normal_form.views import NEEDS_LAYOUT, View, sizes_of
from nncompress.ir.graph.normal_form.writes import (
    TAKES_MEMORY,
    functional_form,
    hands_on,
    is_write,
    written_by,
)
from nncompress.ir.graph.places import place
from nncompress.ir.graph.state import NEXT_STATE
from nncompress.ir.torch_logs import unlogged

aten = torch.ops.aten


@dataclass(eq=False)
class _Memory:
    version: int = 0


@dataclass(eq=False)
class _Value:
    """A tensor of the original graph.

    Attributes:
        node: holds its contents as of `version` of its memory.
        parent, view: what it is a window on.
    """

    node: fx.Node
    stand_in: Tensor
    memory: _Memory = field(default_factory=_Memory)
    version: int = 0
    parent: _Value | None = None
    view: View | None = None


@dataclass(frozen=True)
class _Call:
    """A call as the original graph made it, with the tensors among its arguments and their versions then."""

    target: OpOverload
    args: Any
    kwargs: Any
    sources: dict[fx.Node, _Value]
    versions: dict[fx.Node, int]


def functionalize(module: fx.GraphModule) -> bool:
    """Do it, in place; False if some new nodes lack their shapes, which an export anew would give."""
    if not any(is_write(node) or node.target in TAKES_MEMORY for node in module.graph.nodes):
        return True
    rewriter = _Rewriter(module)
    with unlogged():  # a shape that cannot be told here is told by an export anew, or refused by it
        rewriter.run()
    return rewriter.complete


class _Rewriter:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.complete = True
        self.values: dict[fx.Node, _Value] = {}
        self.stand_ins = StandIns()
        self.calls: dict[fx.Node, _Call] = {}
        self.roots: dict[tuple[Any, ...], tuple[fx.Node, _Value]] = {}  # stored tensors
        self.gone: list[fx.Node] = []

    def run(self) -> None:
        for node in list(self.graph.nodes):
            with self.graph.inserting_before(node):
                self._visit(node)
        with self.graph.inserting_before(self.graph.output_node()):
            for stored, value in self.roots.values():
                if value.memory.version:
                    self._refuse_shared(value)
                    self.graph.call_function(NEXT_STATE, (stored, self._current(value)))
        for node in reversed(self.gone):
            self.graph.erase_node(node)

    def _refuse_shared(self, changed: _Value) -> None:
        names = [
            str(n.target) for n, value in self.roots.values() if shared(value.stand_in, changed.stand_in)
        ]
        if len(names) > 1:
            raise UnsupportedError(
                "the model changes a stored tensor that shares memory with others, whenever it runs",
                got=", ".join(names),
                remedy="give each memory of its own",
            )

    # -- reading ---------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._visit_stored(node)
        elif node.target in TAKES_MEMORY:
            self._take_memory(node)
        elif node.op == "call_function" and is_write(node):
            if torch.Tag.inplace_view in node.target.tags:  # type: ignore[union-attr]
                self._change_shape(node)
            else:
                self._change_contents(node)
        else:
            stand_in = self.stand_ins.result(node)
            self._own(node, stand_in)
            window = self._find_window(node, stand_in)
            if window is not None:
                self.values[node] = window
            node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), self._read)

    def _visit_stored(self, node: fx.Node) -> None:
        tensor: Any = self.module
        for part in str(node.target).split("."):
            tensor = getattr(tensor, part)
        if not isinstance(tensor, Tensor):
            return
        key = (
            tensor.untyped_storage()._cdata,
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        if key not in self.roots:
            self._own(node, self.stand_ins.stored(tensor))
            self.roots[key] = (node, self.values[node])
        _, self.values[node] = self.roots[key]
        self.stand_ins.of[node] = self.values[node].stand_in

    def _own(self, node: fx.Node, stand_in: Any) -> None:
        self.stand_ins.of[node] = stand_in
        if isinstance(stand_in, Tensor):
            self.values[node] = _Value(node, stand_in)

    def _read(self, node: fx.Node) -> fx.Node:
        return self._current(self.values[node]) if node in self.values else node

    def _current(self, value: _Value) -> fx.Node:
        """A node with its contents as they are now."""
        if value.version != value.memory.version:
            assert value.parent is not None
            assert value.view is not None
            value.node = value.view.apply(self._emit, self._current(value.parent))
            value.version = value.memory.version
        return value.node

    # -- windows ---------------------------------------------------------------------------------------------

    def _find_window(self, node: fx.Node, stand_in: Any) -> _Value | None:
        """`node` as a window on one of its arguments; None where it has memory of its own."""
        if node.op != "call_function":
            return None
        call: Any = node
        part: Any = None
        if node.target is operator.getitem:
            call, part = node.args
        elif isinstance(node.target, OpOverload):
            sources = {
                source: self.values[source] for source in node.all_input_nodes if source in self.values
            }
            versions = {source: value.memory.version for source, value in sources.items()}
            self.calls[node] = _Call(node.target, node.args, node.kwargs, sources, versions)
        if not isinstance(stand_in, Tensor) or call not in self.calls:
            return None
        made = self.calls[call]
        for source, value in made.sources.items():
            if shared(value.stand_in, stand_in):
                window = self._window(node, made, source, part, stand_in)
                assert window.view is not None
                if value.memory.version and window.view.name in NEEDS_LAYOUT:
                    window.version = -1  # made anew when it is read
                return window
        return None

    def _window(
        self, node: fx.Node, call: _Call, source: fx.Node, part: int | None, stand_in: Tensor
    ) -> _Value:
        def others(argument: fx.Node) -> fx.Node:  # they matter for their sizes only
            return argument if argument is source else self._read(argument)

        value = call.sources[source]
        if call.target is aten.as_strided.default:  # it looks at the memory, not at its argument
            while value.parent is not None:
                value = value.parent
            call = replace(call, args=(source, *call.args[1:3], stand_in.storage_offset()))
        args, kwargs = fx.map_arg((call.args, call.kwargs), others)
        view = View(call.target, args, kwargs, source, part, value.stand_in, stand_in)
        return _Value(node, stand_in, value.memory, call.versions[source], value, view)

    # -- writing ---------------------------------------------------------------------------------------------

    def _change_shape(self, node: fx.Node) -> None:
        """`squeeze_` and its like: the name's window is another one from here on; the memory stays."""
        source: Any = node.args[0]
        value = self.values[source]
        target = functional_form(node.target)
        if target is None:
            raise UnsupportedError(f"no form that leaves its argument alone is known here of {place(node)}")
        stand_in = self.stand_ins.run(target, node)
        call = _Call(target, node.args, node.kwargs, {source: value}, {source: value.memory.version})
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._read)
        self._rename(
            node, value, self._window(self._emit(target, *args, **kwargs), call, source, None, stand_in)
        )

    def _take_memory(self, node: fx.Node) -> None:
        """`a.set_(b)`: the name is another one of that memory from here on."""
        renamed, given = node.all_input_nodes[0], node.all_input_nodes[-1]
        source = self.values[given]
        call = _Call(aten.alias.default, (given,), {}, {given: source}, {given: source.memory.version})
        stand_in = aten.alias.default(source.stand_in)
        window = self._window(self._emit(aten.alias.default, self._read(given)), call, given, None, stand_in)
        self._rename(node, self.values[renamed], window, kept=False)

    def _rename(self, node: fx.Node, before: _Value, now: _Value, *, kept: bool = True) -> None:
        """What was called `before` is called `now`, and so is the result of the op that does it.

        Names of one tensor, which ops like `contiguous()` hand back themselves, have one stand-in.

        Args:
            kept: `now` is a window on the memory of `before`.
        """
        alike = kept and now.stand_in.shape == before.stand_in.shape
        for stored, root in self.roots.values():
            if root.stand_in is before.stand_in and not alike:
                if kept:
                    raise UnsupportedError(
                        f"the model changes the shape of {stored.target} whenever it runs", got=place(node)
                    )
                raise UnsupportedError(
                    f"the model gives {stored.target} other memory whenever it runs, by set_() or .data = …",
                    remedy="change its values with copy_(), or compute with another tensor",
                )
        for name, known in [*self.values.items(), (node, before)]:
            if known.stand_in is before.stand_in:
                self.values[name], self.stand_ins.of[name] = now, now.stand_in
        self.gone.append(node)

    def _change_contents(self, node: fx.Node) -> None:
        written = [source for source in written_by(node) if source in self.values]
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._read)
        contents = self._new_contents(node, args, kwargs, written[0]) if len(written) == 1 else None
        if contents is not None:
            self._write(self.values[written[0]], contents)
            self.gone.append(node)
        else:  # it has no functional form: it writes to copies
            before = [self._read(source) for source in written]
            copies = {now: self._emit(aten.clone.default, now) for now in before}
            node.args, node.kwargs = fx.map_arg((args, kwargs), lambda each: copies.get(each, each))
            for source, now in zip(written, before):
                self._write(self.values[source], copies[now])
        if len(written) == 1 and hands_on(node.target):
            self.values[node], self.stand_ins.of[node] = (
                self.values[written[0]],
                self.stand_ins.of[written[0]],
            )
        else:
            self._own(node, self.stand_ins.recorded(node))

    def _new_contents(self, node: fx.Node, args: Any, kwargs: Any, source: fx.Node) -> fx.Node | None:
        """What the tensor `source` holds after the op; None where no op computes it without a write."""
        now = self._read(source)
        target: Any = node.target
        match target._schema.name.split("::")[-1]:
            case "zero_":
                return self._emit(aten.zeros_like.default, now)
            case "copy_" | "fill_":
                number = not isinstance(args[1], fx.Node)
                return (
                    self._emit(aten.full_like.default, now, args[1]) if number else self._fitted(args[1], now)
                )
        functional = functional_form(target)
        if functional is None:
            return None
        kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        return self._fitted(self._emit(functional, *args, **kwargs), now)

    def _fitted(self, contents: fx.Node, now: fx.Node) -> fx.Node:
        """`contents` in the type and shape of what it is written over."""
        before, after = now.meta.get("val"), contents.meta.get("val")
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return contents
        if after.dtype != before.dtype:
            contents = self._emit(aten.to.dtype, contents, before.dtype)
        if [str(size) for size in after.shape] != [str(size) for size in before.shape]:
            contents = self._emit(aten.expand.default, contents, sizes_of(self._emit, now))
        return contents

    def _write(self, value: _Value, contents: fx.Node) -> None:
        path: list[tuple[_Value, fx.Node]] = []
        while value.parent is not None:
            path.append((value, self._current(value.parent)))
            value = value.parent
        version = value.memory.version + 1
        for window, before in path:
            window.node, window.version = contents, version
            assert window.view is not None
            contents = window.view.write_back(self._emit, before, contents)
        value.node, value.version = contents, version
        value.memory.version = version

    # -- new nodes -------------------------------------------------------------------------------------------

    def _emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if target is aten.sym_size.int:
            args = self._of_an_input(*args)
        name = target._schema.name.split("::")[-1] if isinstance(target, OpOverload) else target.__name__
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        try:
            given = fx.map_arg((args, kwargs), lambda argument: argument.meta["val"])
            mode = next(_fake_modes(given))
            with mode:
                node.meta["val"] = target(*given[0], **given[1])
        except Exception:  # an export anew will tell
            self.complete = False
        return node

    def _of_an_input(self, node: fx.Node, dim: int) -> tuple[fx.Node, int]:
        """Where else that size is read, if an input has it: nothing is computed for its size alone."""
        size = str(node.meta["val"].shape[dim])
        for each in self.graph.find_nodes(op="placeholder"):
            shape = getattr(each.meta.get("val"), "shape", ())
            if size in (sizes := list(map(str, shape))):
                return each, sizes.index(size)
        return node, dim


def _fake_modes(given: Any) -> Iterator[Any]:
    for value in torch.utils._pytree.tree_leaves(given):
        if isinstance(value, torch._subclasses.FakeTensor):
            yield value.fake_mode
