"""A model in another float precision: weights, arithmetic, and the inputs and outputs as asked.

float16 holds nothing beyond 65504. Stored values beyond it are refused; constants in the graph (the −1e9 of a
mask, say) become its ends, which do there what they did. bfloat16 has the range of float32. Floats that the
graph makes of none (positions, shares of counts) are cast where they are made. Made float32 again, a model of
halves computes more exactly, with the weights that it has; one of float64 is rounded.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from nncompress.dtypes import dtype_name
from nncompress.errors import UnsupportedError
from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name

_CAST = torch.ops.aten.to.dtype
PRECISIONS = ("float32", "float16", "bfloat16")
OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)  # what is made float32 where that is asked for
MAKE_FLOAT32 = "nncompress export MODEL --precision float32 -o float32.pt2, and go on with that"


def in_precision(model: Model, precision: str) -> Model:
    """A copy whose weights, inputs, arithmetic and outputs are of `precision`, one of `PRECISIONS`.

    Raises:
        UnsupportedError: as `convert`.
    """
    changed = model.copy()
    if precision != "float32":
        convert(changed, precision)
    return changed


def convert(model: Model, precision: str, *, float32_ends: bool = False) -> list[tuple[str, int]]:
    """Convert a model in place; returns (tensor name, number of values) of every converted tensor.

    Args:
        precision: "float16" or "bfloat16", for what is float32; or "float32", for what is `OTHER_FLOATS`.
        float32_ends: inputs and outputs stay float32, cast where they come in and go out, so that data and
            callers need not know.

    Raises:
        UnsupportedError: the model is quantized, a stored value does not fit, or the model does not trace in
            this precision.
    """
    if is_quantized(model):
        raise UnsupportedError(
            f"a quantized model has no {precision} form", remedy="convert the model before it is quantized"
        )
    dtype: torch.dtype = getattr(torch, precision)
    others = OTHER_FLOATS if dtype == torch.float32 else (torch.float32,)
    largest = torch.finfo(dtype).max
    outside = [_is_of(v, (torch.float32,)) for v in model.graph.output_node().args[0]]  # type: ignore[union-attr]
    converted = _convert_tensors(model, others, dtype, largest)

    def narrow(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return dtype if value in others else value
        if isinstance(value, float) and largest < abs(value) < float("inf"):
            return largest if value > 0 else -largest
        return value

    for node in list(model.graph.nodes):  # literals: types of casts, constants
        if node.op != "call_function":
            continue
        node.args = fx.node.map_aggregate(node.args, narrow)
        node.kwargs = fx.node.map_aggregate(node.kwargs, narrow)
        if _is_of(node, others) and not _follows_operands(node, dtype):
            _cast_behind(node, node, dtype)
    if float32_ends:
        _cast_at_the_ends(model, dtype, outside)
    else:
        model.inputs = tuple(
            replace(spec, dtype=precision) if spec.torch_dtype() in others else spec for spec in model.inputs
        )
    model.refresh()
    if dtype != torch.float32 and _leave_wide(model, dtype):
        model.refresh()
    return converted


def computed_in_float32(model: Model) -> list[fx.Node]:
    """Of a model in halves, the ops for which torch has no kernel of halves."""
    found = (
        node.all_input_nodes[0] if node.target is operator.getitem else node
        for node in model.graph.nodes
        if node.op == "call_function" and node.target is not _CAST and _is_of(node, (torch.float32,))
    )
    return list(dict.fromkeys(found))


def has_other_floats(model: Model) -> bool:
    """Something of it is of `OTHER_FLOATS`: weights, inputs, or what it computes."""
    stored = any(model.tensor(name).dtype in OTHER_FLOATS for name in model.state_dict())
    return stored or any(_is_of(node, OTHER_FLOATS) for node in model.graph.nodes)


def is_quantized(model: Model) -> bool:
    """It rounds weights or activations to integers."""
    return any("quantize_per" in op_name(node) for node in model.graph.nodes)


def _convert_tensors(
    model: Model, others: Collection[torch.dtype], dtype: torch.dtype, largest: float
) -> list[tuple[str, int]]:
    wide: dict[int, tuple[str, Tensor]] = {}  # a tied tensor once
    for name in model.state_dict():
        tensor = model.tensor(name)
        if tensor.dtype in others:
            wide.setdefault(id(tensor), (name, tensor.detach()))
    for name, tensor in wide.values():
        peak = tensor.abs()[tensor.isfinite()].max() if tensor.isfinite().any() else 0.0
        if float(peak) > largest:
            raise UnsupportedError(
                f"{name} holds values beyond {largest:g}, the largest of {dtype_name(dtype)}",
                got=f"{float(peak):.3g}",
                remedy="leave --precision out: it needs the range of float64"
                if dtype == torch.float32
                else "keep float32, quantize to int8, or take bfloat16, which has the range of float32",
            )
    for name, tensor in wide.values():
        edit.replace_tensor(model, name, tensor.to(dtype))
    return [(name, tensor.numel()) for name, tensor in wide.values()]


def _cast_at_the_ends(model: Model, dtype: torch.dtype, outside: Sequence[bool]) -> None:
    """Args:
    outside: of each output, whether it is float32 for callers.
    """
    placeholders = [n for n in model.graph.nodes if n.op == "placeholder"]
    for node in placeholders:
        if _is_of(node, (torch.float32,)):
            _cast_behind(node, placeholders[-1], dtype)
    output = model.graph.output_node()
    values: Any = output.args[0]
    with edit.inserting_before(output) as call:
        cast = [call(_CAST, v, torch.float32) if wide else v for v, wide in zip(values, outside, strict=True)]
    output.args = (tuple(cast),)


def _cast_behind(node: fx.Node, place: fx.Node, dtype: torch.dtype) -> None:
    """Whoever reads `node` reads it in `dtype`, by a cast behind `place`."""
    with edit.inserting_before(place.next) as call:
        inside = call(_CAST, node, dtype)
    node.replace_all_uses_with(inside, delete_user_cb=lambda user: user is not inside)


def _leave_wide(model: Model, dtype: torch.dtype) -> bool:
    """Let ops that have no kernel of this type read and give float32, between casts; False without any."""
    run = _Halves(model.graph_module, dtype)
    with torch.no_grad(), suppress(Exception):  # what it does not run at all is told by whoever checks it
        run.run(*model.example_inputs(max(2, model.least_batch)))
    for node in run.without_kernel:
        with edit.inserting_before(node) as call:
            halves = [n for n in node.all_input_nodes if _is_of(n, (dtype,))]
            for each in halves:
                node.replace_input_with(each, call(_CAST, each, torch.float32))
        for made in [node] if isinstance(node.meta["val"], Tensor) else list(node.users):
            if _is_of(made, (dtype,)):
                _cast_behind(made, made, dtype)
    return bool(run.without_kernel)


class _Halves(fx.Interpreter):
    """Runs a graph of halves, and notes which of its ops cannot.

    Processors are slow in halves: an op that has run once, on as many dims, is computed in float32.
    """

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(module)
        self._dtype = dtype
        self.without_kernel: list[fx.Node] = []
        self._ran: set[tuple[Any, ...]] = set()

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        given = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        kind = (target, *((v.dim(), v.dtype) for v in given))
        if kind in self._ran and _is_of(self._node, (self._dtype,)):
            wide = self._cast((args, kwargs), self._dtype, torch.float32)
            return super().call_function(target, *wide).to(self._dtype)
        try:
            result = super().call_function(target, args, kwargs)
            self._ran.add(kind)
            return result
        except (NotImplementedError, RuntimeError):  # of which torch raises either
            wide = self._cast((args, kwargs), self._dtype, torch.float32)
            result = super().call_function(target, *wide)
            self.without_kernel.append(self._node)
            return self._cast(result, torch.float32, self._dtype)

    def run_node(self, n: fx.Node) -> Any:
        self._node = n
        return super().run_node(n)

    @staticmethod
    def _cast(values: Any, old: torch.dtype, new: torch.dtype) -> Any:
        return pytree.tree_map(lambda v: v.to(new) if isinstance(v, Tensor) and v.dtype == old else v, values)


def _follows_operands(node: fx.Node, dtype: torch.dtype) -> bool:
    """Its result is of the dtype of a float that it reads, or of the one that it names."""
    floats = [
        v
        for n in node.all_input_nodes
        if isinstance(v := n.meta.get("val"), Tensor) and v.is_floating_point()
    ]
    return bool(floats) or dtype in (*node.args, *node.kwargs.values())


def _is_of(node: object, dtypes: Collection[torch.dtype]) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype in dtypes
