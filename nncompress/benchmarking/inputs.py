"""Inputs to time artifacts on: the same numbers for every candidate, in the dtypes each of them takes.

Of a language model, two phases are timed: reading a prompt at once, then a token at a time.

| phase  | inputs                                     |                                                 |
|--------|--------------------------------------------|-------------------------------------------------|
| prompt | ids [batch, N], an empty cache             | N tokens a call                                 |
| decode | ids [batch, 1], N tokens in the cache      | 1 token a call                                  |
| decode | ids [batch, N] where there is no cache     | 1 token a call: all of them are computed again  |

A cache is any float input of three dims or more: past keys and values, or state.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nncompress.errors import DataError, UsageError
from nncompress.ir import InputSpec, Model
from nncompress.ir.graph.inputs import BATCH, USUAL_SIZE, mask
from nncompress.results import Phase
from nncompress.runtimes import Runner
from nncompress.runtimes.base import Array, check_inputs
from nncompress.runtimes.free_sizes import free_dims, usual_sizes

Inputs = tuple[np.ndarray, ...]


def random_inputs(
    specs: Sequence[InputSpec], batch: int, seed: int, sizes: Mapping[str, int] | None = None
) -> Inputs:
    """Standard normal floats, integers and booleans within each input's range.

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
            inputs.append(mask(spec, shape).numpy())
        else:
            inputs.append(generator.integers(spec.low, spec.high, shape).astype(spec.dtype))
    return tuple(inputs)


def inputs_of_model(model: Model, batch: int, seed: int = 0) -> Inputs:
    """Random ones of a loaded model, which knows ranges, bounds and sizes, as a file does not."""
    tensors = model.example_inputs(batch, seed)
    return tuple((x.float() if x.is_floating_point() else x).numpy() for x in tensors)


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
            runner.run(*random_inputs(runner.inputs, runner.least_batch, 0, others))
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


@dataclass(frozen=True)
class _Inputs:
    """What the inputs of a language model are.

    Attributes:
        length: of the tokens of a call; a name where it is free.
        past: names of the free dims of caches.
    """

    specs: Sequence[InputSpec]
    length: int | str
    past: tuple[str, ...]
    cached: bool


def phases(specs: Sequence[InputSpec], tokens: int, name: str) -> list[Phase]:
    """What is measured of a model with these inputs, with prompts of so many tokens.

    Raises:
        UsageError: it has no input of tokens, or takes another number of them.
    """
    known = _read(specs, name)
    if known.length == 1:
        return [Phase("decode", 1, tokens, cached=known.cached)]
    if isinstance(known.length, int) and known.length != tokens:
        raise UsageError(
            f"{name} takes {known.length} tokens, no more and no fewer",
            got=f"--tokens {tokens}",
            remedy=f"--tokens {known.length}, or export it with a free length",
        )
    prompt = Phase("prompt", tokens, 0, cached=known.cached)
    if known.cached and isinstance(known.length, int):
        return [prompt]  # the graph that fills the cache
    return [prompt, Phase("decode", 1, tokens, cached=known.cached)]


def inputs_of(phase: Phase, specs: Sequence[InputSpec], batch: int, seed: int, name: str) -> Inputs:
    """Random ones of this phase; masks are open, positions follow the cache."""
    known = _read(specs, name)
    length = phase.tokens if phase.cached or phase.name == "prompt" else phase.context
    past = phase.context if phase.cached else 0
    sizes = dict.fromkeys(known.past, past)
    if isinstance(known.length, str):
        sizes[known.length] = length
    for dim in free_dims([spec.shape for spec in specs]):
        if dim.isidentifier():  # else it is an expression of the others
            sizes.setdefault(dim, past + length)
    made = random_inputs(specs, batch, seed, sizes)
    return tuple(_sensible(spec, each, past) for spec, each in zip(specs, made, strict=True))


def _sensible(spec: InputSpec, drawn: np.ndarray, past: int) -> np.ndarray:
    if drawn.dtype.kind not in "iu":
        return drawn
    if "mask" in spec.name:
        return np.ones_like(drawn)
    if "position" in spec.name:
        return np.broadcast_to(np.arange(past, past + drawn.shape[-1], dtype=drawn.dtype), drawn.shape).copy()
    return drawn


def _read(specs: Sequence[InputSpec], name: str) -> _Inputs:
    rows = [spec for spec in specs if spec.dtype.startswith("int") and len(spec.shape) == 2]
    tokens = next((spec for spec in rows if "mask" not in spec.name and "position" not in spec.name), None)
    if tokens is None:
        raise UsageError(
            f"bench --tokens: {name} has no input of tokens",
            got=", ".join(map(str, specs)),
            expected="whole numbers [batch, tokens]",
            remedy="leave --tokens out",
        )
    length = tokens.shape[1 - (tokens.batch_dim or 0)]
    caches = [spec for spec in specs if spec.dtype.startswith(("float", "bfloat")) and len(spec.shape) > 2]
    past = {dim for dim in free_dims([spec.shape for spec in caches]) if dim not in (BATCH, length)}
    return _Inputs(specs, length, tuple(past), bool(caches))
