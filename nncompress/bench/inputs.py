"""Inputs to time artifacts on: the same numbers for every arm, in the dtypes each of them takes."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from nncompress.errors import DataError, UsageError
from nncompress.ir import InputSpec
from nncompress.ir.graph.inputs import BATCH, USUAL_SIZE
from nncompress.runtimes import Runner
from nncompress.runtimes.base import Array, check_inputs
from nncompress.runtimes.free_sizes import free_dims, usual_sizes

Inputs = tuple[np.ndarray, ...]


def random_inputs(
    specs: Sequence[InputSpec], batch: int, seed: int, sizes: Mapping[str, int] | None = None
) -> Inputs:
    """Standard normal floats, integers within each input's range.

    Args:
        sizes: of dynamic dims other than the batch; those that are not said have `USUAL_SIZE`.
    """
    generator = np.random.default_rng(seed)
    known = {**(sizes or {}), BATCH: batch}
    inputs = []
    for spec in specs:
        shape = tuple(d if isinstance(d, int) else _size(d, known) for d in spec.shape)
        if spec.dtype.startswith(("float", "bfloat")):
            inputs.append(generator.standard_normal(shape).astype(np.float32))
        elif spec.dtype == "bool":
            inputs.append(np.ones(shape, bool))
        else:
            inputs.append(generator.integers(spec.low, spec.high, shape).astype(spec.dtype))
    return tuple(inputs)


def sizes_that_run(runner: Runner, remembered: Mapping[str, int]) -> dict[str, int]:
    """Of the dynamic dims, batch apart: the likeliest with which the file runs; none where it has none.

    Args:
        remembered: what the file itself says of them.
    """
    names = free_dims([spec.shape for spec in runner.inputs])
    follow = {name for name in names if _follows(name, names)}
    shapes = [tuple(1 if d in follow else d for d in spec.shape) for spec in runner.inputs]
    for sizes in usual_sizes(shapes, BATCH, remembered):
        others = {dim: size for dim, size in sizes.items() if dim != BATCH}
        if not others:
            break
        try:
            runner.run(*random_inputs(runner.inputs, 1, 0, others))
        except DataError:
            continue
        return others
    return {}


def _follows(name: str, names: Sequence[str]) -> bool:
    """It is an expression of others ("2*seq + 1"), whatever a file calls its dims ("length-1", "p.2")."""
    words = re.findall(r"[^\W\d]\w*", name)
    return not name.isidentifier() and bool(words) and all(word in names for word in words)


def _size(name: str, known: Mapping[str, int]) -> int:
    """A dim by its name, which may be an expression of others: "2*seq + 1"."""
    if name in known or name.isidentifier():
        return known.get(name, USUAL_SIZE)
    try:
        return max(1, _evaluated(ast.parse(name[:200], mode="eval").body, known))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError):
        return USUAL_SIZE


_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}


def _evaluated(expression: ast.expr, known: Mapping[str, int]) -> int:
    match expression:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return known.get(name, USUAL_SIZE)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](_evaluated(left, known), _evaluated(right, known))
        case ast.Call(func=ast.Name(id="floor"), args=[inside]):
            return _evaluated(inside, known)
    raise ValueError(ast.dump(expression))


def inputs_for(runner: Runner, inputs: Inputs, name: str) -> tuple[Array, ...]:
    """The inputs in the dtypes that the runner takes.

    Raises:
        UsageError: the artifact takes another number of inputs, or another fixed batch.
        DataError: it takes other shapes.
    """
    if len(runner.inputs) != len(inputs):
        raise UsageError(
            f"{name} takes other inputs than the first artifact",
            got=", ".join(map(str, runner.inputs)),
            expected=f"{len(inputs)} inputs",
        )
    for spec, array in zip(runner.inputs, inputs):
        dim = spec.batch_dim
        fixed = spec.shape[dim] if dim is not None else None
        if isinstance(fixed, int) and dim is not None and array.ndim > dim and array.shape[dim] != fixed:
            raise UsageError(
                f"{name} takes batches of {fixed} only",
                got=f"a batch of {array.shape[dim]}",
                remedy=f"--batch {fixed}, or export it with a dynamic batch",
            )
    cast = tuple(_cast(array, spec.dtype) for spec, array in zip(runner.inputs, inputs))
    check_inputs(runner.inputs, cast, name)
    return cast


def _cast(array: np.ndarray, dtype: str) -> Array:
    if dtype == "bfloat16":  # numpy has none
        return torch.from_numpy(array).to(torch.bfloat16)
    return array.astype(dtype, copy=False)
