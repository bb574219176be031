"""Edits of a program of our own that torch 2.13's ONNX exporter would refuse, or say otherwise.

An attention's result changes its strides when it is decomposed; then a `view` of its transpose is refused: a
copy in between makes it legal, and costs nothing, since ONNX has no strides. The divisor of an average pool
is dropped: a factor behind the pool stands in for it. Euclidean distances of rows have no translation. Means
of what is scattered become the last of each: sums over counts stand in for them. Of infinities alone the
extreme becomes the largest finite number: an infinity is laid there first. A source that is larger than its
index is refused by ONNX Runtime: it is cut to the index's size. Padding that wraps around is said as
concatenations, which more runtimes read. Bounds of which one is an int and one a float become floats.
Functions that it says with a loss of digits are said in `special_functions`, those that it says wrongly at
edges in `edge_values`, frames laid over each other in `frames`, what is computed of short integers and of
truth values in `short_numbers`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from nncompress.exporting.lower.exporter.edge_values import EDGE_VALUES, whole_quotient
from nncompress.exporting.lower.exporter.frames import istft
from nncompress.exporting.lower.exporter.short_numbers import SHORT, compute_in_32_bits
from nncompress.exporting.lower.exporter.special_functions import SPECIAL_FUNCTIONS
from nncompress.exporting.lower.scalars import give_a_dim, say_what_nothing_gives
from nncompress.exporting.lower.spell_out import STEPS
from nncompress.exporting.lower.wrapped import lay_ends_beside
from nncompress.ir.graph.normal_form.decompose import take_apart
from nncompress.ir.graph.ops import COPIES, DROPOUTS, REORDERS, RESHAPES, op_name
from nncompress.ir.layers.weights import argument

aten = torch.ops.aten
DIMS = {"avg_pool2d": 2, "avg_pool3d": 3}
FUNCTIONS = SPECIAL_FUNCTIONS | EDGE_VALUES | {aten.istft.default: istft}
LOOKUPS = {aten.searchsorted.Tensor: 1, aten.bucketize.Tensor: 0}  # of one number the exporter makes a row
SCATTERS = (aten.scatter.src, aten.scatter_add.default, aten.scatter_reduce.two)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: the determinant, of which it takes the one result for all three of torch's."""
    from onnxscript import opset20 as op

    return {aten._linalg_det.default: lambda matrix: (op.Det(matrix),)}


def _name_all_dims(node: fx.Node) -> None:
    """Of a largest or least value of all, of which the exporter asks along which dims it is."""
    if node.target in (aten.amax.default, aten.amin.default) and not argument(node, 1):
        x = node.args[0]
        assert isinstance(x, fx.Node)
        node.args = (x, list(range(x.meta["val"].dim())), *node.args[2:])


def dodge_defects(program: ExportedProgram) -> None:
    """Edit in place; the program computes the same."""
    lay_ends_beside(program.graph)
    for node in list(program.graph.nodes):
        _bounds_of_one_type(node)
        if say_what_nothing_gives(node):
            continue
        _name_all_dims(node)
        give_a_dim(node)
        compute_in_32_bits(node)
        if _looks_up_one(node):
            take_apart(program.graph, node, STEPS[node.target])
        elif node.target in FUNCTIONS:
            take_apart(program.graph, node, FUNCTIONS[node.target])
        elif node.target in (aten.view.default, aten.reshape.default):
            _copy_attention(node)
        elif op_name(node) in DIMS:
            _divide_as_usual(node)
        elif op_name(node) == "cdist" and argument(node, 2) == 2:
            _spell_distances(node)
        elif node.target in SCATTERS:
            _cut_source(node)
            if argument(node, 4) == "mean":
                take_apart(program.graph, node, _mean_of_scattered)
            elif argument(node, 4) in ("amax", "amin"):
                _lay_infinities(node)
    program.graph_module.recompile()


def _looks_up_one(node: fx.Node) -> bool:
    looked_up: Any = node.args[LOOKUPS[node.target]] if node.target in LOOKUPS else None
    return isinstance(looked_up, fx.Node) and not looked_up.meta["val"].dim()


def _bounds_of_one_type(node: fx.Node) -> None:
    """Of `clamp(-2, 1.9)` the exporter finds no form that takes an int and a float."""
    if node.target is aten.clamp.default and any(isinstance(bound, float) for bound in node.args[1:]):
        bounds = (float(bound) if isinstance(bound, int) else bound for bound in node.args[1:])
        node.args = (node.args[0], *bounds)


def _copy_attention(view: fx.Node) -> None:
    source: Any = view.args[0]
    if op_name(source) not in REORDERS or not _from_attention(source):
        return
    copied = _call(view, aten.clone.default, source, memory_format=torch.contiguous_format)
    view.replace_input_with(source, copied)


def _from_attention(node: fx.Node) -> bool:
    while op_name(node) in REORDERS | RESHAPES | COPIES | DROPOUTS:
        node = node.all_input_nodes[0]
    return "attention" in op_name(node)


def _divide_as_usual(pool: fx.Node) -> None:
    given: Any = tuple(argument(pool, position) for position in range(5))
    kernel, divisor = given[1], argument(pool, 6)
    if divisor is None or given[4]:  # a window that sticks out has fewer pixels
        return
    pixels = prod(kernel) if len(kernel) > 1 else kernel[0] ** DIMS[op_name(pool)]
    plain = _call(pool, pool.target, *given, True, None)
    pool.replace_all_uses_with(_call(pool, aten.mul.Tensor, plain, pixels / divisor))


def _spell_distances(distances: fx.Node) -> None:
    """`[.., P, M], [.., R, M] -> [.., P, R]`."""
    rows = _call(distances, aten.unsqueeze.default, distances.args[0], -2)
    columns = _call(distances, aten.unsqueeze.default, distances.args[1], -3)
    apart = _call(distances, aten.sub.Tensor, rows, columns)
    squares = _call(distances, aten.sum.dim_IntList, _call(distances, aten.mul.Tensor, apart, apart), [-1])
    distances.replace_all_uses_with(_call(distances, aten.sqrt.default, squares))


def _cut_source(scatter: fx.Node) -> None:
    index, source = (scatter.args[place].meta["val"] for place in (2, 3))  # type: ignore[union-attr]
    cut: Any = scatter.args[3]
    for dim, (size, wanted) in enumerate(zip(source.shape, index.shape)):
        if size is not wanted and size != wanted and isinstance(wanted, int):
            cut = _call(scatter, aten.slice.Tensor, cut, dim, 0, wanted)
    scatter.update_arg(3, cut)


def _lay_infinities(scatter: fx.Node) -> None:
    """Where an extreme of the sources alone will be, there is what any of them exceeds."""
    x: Any = scatter.args[0]
    if scatter.kwargs.get("include_self", True) or not x.meta["val"].is_floating_point():
        return  # the exporter has these right
    least = -inf if argument(scatter, 4) == "amax" else inf
    scatter.update_arg(0, _call(scatter, aten.scatter.value, x, *scatter.args[1:3], least))
    scatter.update_kwarg("include_self", True)


def _mean_of_scattered(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    divide = torch.div if x.is_floating_point() else partial(whole_quotient, rounding_mode="floor")
    counts = torch.zeros_like(x).scatter_add(dim, index, torch.ones_like(source))
    if include_self:
        return divide(x.scatter_add(dim, index, source), counts + 1)
    sums = torch.zeros_like(x).scatter_add(dim, index, source)
    means = divide(sums, counts.clamp_min(1))
    wide = torch.int32 if x.dtype in SHORT else x.dtype
    return torch.where(counts > 0, means.to(wide), x.to(wide)).to(x.dtype)


def _call(before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    values = fx.map_arg((args, kwargs), lambda each: each.meta["val"])
    node.meta["val"] = target(*values[0], **values[1])
    return node
