"""Control flow whose course is known while tracing: branches taken, loops unrolled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from nncompress.errors import UnsupportedError
from nncompress.loading.onnx.interpreter import Call, Missing, Walk, rule
from nncompress.loading.onnx.values import Value, as_tensor, scalar

MOST_TURNS = 512

# what torch refuses by numbers in the second operand: positions that are not there, integers that are zero
_INDEXED = {"Gather", "GatherElements", "GatherND", "Scatter", "ScatterElements", "ScatterND"}
_DIVIDING = {"Div", "Mod"}


class Fails(Exception):
    """Whoever takes this branch of an `If` gets an error: what is read then has the other one."""


def _inside(
    call: Call, graph: onnx.GraphProto, inputs: list[Value], check: Callable[[Call], None] | None = None
) -> list[Value]:
    walk = Walk(graph, call.walk.store, call.opset, outside=call.walk, check=check)
    return walk.run(dict(zip((value.name for value in graph.input), inputs)))


@rule("If")
def branch(call: Call) -> Any:
    yes, no = call.get("then_branch"), call.get("else_branch")
    if not call.depends(0):
        return _inside(call, yes if bool(scalar(call.array(0))) else no, [])
    depends = call.refusal(
        "its condition depends on the input, and its branches do not fit each other or this size"
    )

    def check(inner: Call) -> None:
        if _raises_by_value(inner):
            raise call.refusal(
                f"its condition depends on the input, and {inner.op} in a branch ({inner.name}) fails "
                "on numbers for which the branch is not taken"
            )
        if _reads_outside(inner):
            raise Fails

    def results(branch: onnx.GraphProto) -> list[Tensor] | None:
        try:
            return [as_tensor(value) for value in _inside(call, branch, [], check)]
        except Fails:
            return None

    try:
        condition = call.tensor(0).reshape([])
        branches = [made for each in (yes, no) if (made := results(each)) is not None]
        if not branches and call.walk.check is not None:
            raise Fails
        if not branches:
            raise call.refusal("its branches read positions that are not there")
        if len(branches) == 1:
            call.walk.store.chosen(
                f"{call.name} (its other branch fails whenever it is taken, and is left out)"
            )
            return branches[0]
        pairs = list(zip(*branches))
    except (Fails, Missing, UnsupportedError):
        raise
    except Exception as error:  # whatever torch raises in the branch that is not for inputs of these sizes
        raise depends from error
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        raise depends
    call.walk.store.chosen(call.name)
    return [torch.where(condition, a, b) for a, b in pairs]


def _raises_by_value(call: Call) -> bool:
    """Can numbers that depend on the input make it fail? What needs known numbers is refused anyway."""
    if call.op in _INDEXED:
        return call.depends(1)
    if call.op not in _DIVIDING:
        return False
    divisor = call.value(1)
    floats = divisor.is_floating_point() if isinstance(divisor, Tensor) else divisor.dtype.kind == "f"
    return not floats and (call.depends(1) or not call.array(1).all())


def _reads_outside(call: Call) -> bool:
    """Is one of the known positions that it reads or writes at beyond a known size?"""
    if call.op not in _INDEXED or call.depends(1):
        return False
    shape, index = call.value(0).shape, call.array(1)
    if call.op.endswith("ND"):
        start = call.get("batch_dims", 0)
        axes, columns = range(start, len(shape)), np.moveaxis(index, -1, 0)
    else:
        axes, columns = range(call.get("axis", 0) % len(shape), len(shape)), index[None]
    sizes = ((shape[axis], column) for axis, column in zip(axes, columns))
    return any(isinstance(n, int) and bool(((at >= n) | (at < -n)).any()) for n, at in sizes)


@rule("Loop")
def loop(call: Call) -> Any:
    body: onnx.GraphProto = call.get("body")
    turns = int(scalar(call.array(0, "how many turns"))) if call.has(0) else MOST_TURNS + 1
    go = bool(scalar(call.array(1, "its condition"))) if call.has(1) else True
    carried = [call.value(i) for i in range(2, len(call))]
    scanned: list[list[Value]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
    turn = 0
    while turn < turns and go:
        if turn >= MOST_TURNS:
            raise call.refusal(f"more than {MOST_TURNS} turns")
        first, *results = _inside(call, body, [np.array(turn, np.int64), np.array(True), *carried])
        if isinstance(first, Tensor):
            raise call.refusal("its condition depends on the input")
        go = bool(scalar(first))
        carried = results[: len(carried)]
        for kept, value in zip(scanned, results[len(carried) :]):
            kept.append(value)
        turn += 1
    if any(not kept for kept in scanned):
        raise call.refusal("it gathers results and takes no turn")
    return [*carried, *(torch.stack([as_tensor(v) for v in kept]) for kept in scanned)]


@rule("Scan")
def scan(call: Call) -> Any:
    body: onnx.GraphProto = call.get("body")
    count = call.get("num_scan_inputs")
    given = [call.value(i) for i in range(len(call))]
    carried, walked = given[: len(given) - count], [as_tensor(v) for v in given[len(given) - count :]]
    axes = call.get("scan_input_axes", [0] * count)
    back = call.get("scan_input_directions", [0] * count)
    turns = walked[0].shape[axes[0]]
    if not isinstance(turns, int) or turns > MOST_TURNS:
        raise call.refusal("its number of turns is free, or too large")
    scanned: list[list[Value]] = [[] for _ in range(len(body.output) - len(carried))]
    for turn in range(turns):
        at = [turns - 1 - turn if b else turn for b in back]
        slices: list[Value] = [x.select(axis, i) for x, axis, i in zip(walked, axes, at)]
        results = _inside(call, body, [*carried, *slices])
        carried = results[: len(carried)]
        for kept, value in zip(scanned, results[len(carried) :]):
            kept.append(value)
    out_axes = call.get("scan_output_axes", [0] * len(scanned))
    out_back = call.get("scan_output_directions", [0] * len(scanned))
    stacked = [
        torch.stack([as_tensor(v) for v in (reversed(kept) if b else kept)], axis)
        for kept, axis, b in zip(scanned, out_axes, out_back)
    ]
    return [*carried, *stacked]
