"""Rules of ops that only move data: run the same movement on the labels.

Every rule takes `(t, node, a)`: the tracer, the node, its arguments by schema name; it returns the labelled
result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import fx

from nncompress.analysis.couplings.labels import (
    PIN,
    Factor,
    components,
    materialize,
    segments,
    shrink,
    varying,
)
from nncompress.analysis.couplings.tracer import Tracer
from nncompress.analysis.couplings.value import Arguments, Result, Value, as_dims
from nncompress.ir.edit.resize import strides_whole

_LARGE = 1 << 18  # a label array beyond this that is not a plain vector is decided at once, not carried on


def reshape(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    after = t.shape(node)
    if math.prod(x.shape) != math.prod(after) or not math.prod(after):
        return t.unknown(node)
    parts = segments(x.shape, after)
    factors = []
    for factor in t.labels.settle(x.factors):
        decided = _decide_if_large(t, factor, x.shape, parts)
        factors += [_reshaped(f, x.shape, after, parts) for f in decided]
    return Value(after, factors)


def _reshaped(
    factor: Factor, before: Sequence[int], after: Sequence[int], parts: list[tuple[range, range]]
) -> Factor:
    source, target = list(factor.shape), [1] * len(after)
    for old, new in parts:
        if any(factor.shape[d] > 1 for d in old):
            for d in old:
                source[d] = before[d]
            for d in new:
                target[d] = after[d]
    return shrink(np.broadcast_to(factor, source).reshape(target))


def _decide_if_large(
    t: Tracer, factor: Factor, shape: Sequence[int], parts: list[tuple[range, range]]
) -> list[Factor]:
    """A grid over parts whose merge would blow it up (the r x r of a pixel shuffle) is fixed there."""
    along = varying(factor)
    touched = [old for old, _ in parts if along & set(old)]
    growing = {d for old in touched if any(d not in along and shape[d] > 1 for d in old) for d in old}
    size = math.prod(shape[d] for old in touched for d in old)
    if len(touched) < 2 or not growing or size < _LARGE:
        return [factor]
    return t.labels.fix([factor], growing & along, "merged with a fixed dim")


def permute(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Also transpose and t."""
    x = t.value(a["self"])
    rank = len(x.shape)
    order = as_dims(a["dims"], rank) if "dims" in a else list(range(rank))
    if "dims" not in a and rank > 1:  # of fewer, torch gives back what came
        first, second = (x.at(a["dim0"]), x.at(a["dim1"])) if "dim0" in a else (0, 1)
        order[first], order[second] = order[second], order[first]
    return Value(t.shape(node), [f.transpose(order) for f in x.factors])


def expand(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Copies made along a dim of size 1 can be made in any number: fresh labels."""
    x = t.value(a["self"])
    after = t.shape(node)
    lead = len(after) - len(x.shape)
    factors = [f.reshape((1,) * lead + f.shape) for f in x.factors]
    before = (1,) * lead + x.shape
    for dim, (old, new) in enumerate(zip(before, after)):
        if old == 1 and new > 1 and t.static(node, dim):
            factors.append(t.fresh(after, dim))
    return Value(after, factors)


def repeat(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    after = t.shape(node)
    lead = len(after) - len(x.shape)
    before = (1,) * lead + x.shape
    factors: list[Factor] = []
    for factor in x.factors:
        factor = factor.reshape((1,) * lead + factor.shape)
        times = [new // old if factor.shape[d] > 1 else 1 for d, (old, new) in enumerate(zip(before, after))]
        factors.append(np.tile(factor, times))
    for dim, (old, new) in enumerate(zip(before, after)):
        if old == 1 and new > 1 and t.static(node, dim):
            factors.append(t.fresh(after, dim))
    return Value(after, factors)


def repeat_interleave(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    if "self" not in a or not isinstance(a.get("dim"), int):
        return t.unknown(node)
    x = t.value(a["self"])
    dim = x.at(a["dim"])
    if isinstance(a["repeats"], fx.Node):
        t.fix_all(t.value(a["repeats"]), "numbers of repetitions")
        return Value(t.shape(node), t.labels.fix(x.factors, [dim], "repeated by numbers of its own"))
    return Value(
        t.shape(node), [np.repeat(f, a["repeats"], dim) if f.shape[dim] > 1 else f for f in x.factors]
    )


def slice_(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Also narrow. Of a stride over a whole labelled dim a unit is one stride of indices: survivors stay
    evenly spaced. Any other stride is fixed.

    So is one whose ends are known at run time only: another run reads indices that the example does not.
    """
    x = t.value(a["self"])
    dim = x.at(a["dim"])
    labelled = any(f.shape[dim] > 1 for f in x.factors)
    start = a.get("start") or 0
    step = a.get("step", 1)
    size, after = x.shape[dim], t.shape(node)
    if labelled and strides_whole(start, step, size) and after[dim] == size // step:
        for f in x.factors:
            if f.shape[dim] == size:
                t.labels.unite_along(f.reshape(*f.shape[:dim], -1, step, *f.shape[dim + 1 :]), [dim + 1])
        index = np.arange(start, size, step)
        return Value(after, [f if f.shape[dim] == 1 else np.take(f, index, dim) for f in x.factors])
    if labelled and (step != 1 or any(isinstance(a.get(k), fx.Node) for k in ("start", "end", "length"))):
        x = Value(x.shape, t.labels.fix(x.factors, [dim], "strided slice, or one of a dynamic size"))
    start = start if isinstance(start, int) else 0
    start = max(start + x.shape[dim], 0) if start < 0 else start
    index = np.arange(start, start + after[dim])
    return Value(after, [f if f.shape[dim] == 1 else np.take(f, index, dim) for f in x.factors])


def select(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    dim, index = x.at(a["dim"]), a["index"]
    if isinstance(index, fx.Node) and any(f.shape[dim] > 1 for f in x.factors):
        x = Value(x.shape, t.labels.fix(x.factors, [dim], "index computed at run time"))
    return Value(t.shape(node), [np.take(f, index if f.shape[dim] > 1 else 0, dim) for f in x.factors])


def split(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """chunk, split, tensor_split: the parts as they are; removal turns it into split_with_sizes."""
    x = t.value(a["self"])
    dim = x.at(a.get("dim", 0))
    shapes = t.shape(node)
    parts: list[Result] = []
    start = 0
    for shape in shapes:
        index = np.arange(start, start + shape[dim])
        parts.append(Value(shape, [f if f.shape[dim] == 1 else np.take(f, index, dim) for f in x.factors]))
        start += shape[dim]
    return parts


def unbind(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    dim = x.at(a.get("dim", 0))
    return [
        Value(shape, [np.take(f, i if f.shape[dim] > 1 else 0, dim) for f in x.factors])
        for i, shape in enumerate(t.shape(node))
    ]


def getitem(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    source, index = node.args
    results = t.values.get(source) if isinstance(source, fx.Node) else None
    return results[index] if isinstance(results, list) and isinstance(index, int) else None


def cat(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    given = [t.value(n) for n in a["tensors"]]
    values = [v for v in given if v.shape != (0,)] or given[:1]
    dim = values[0].at(a.get("dim", 0))
    return Value(t.shape(node), concatenate(t, values, dim))


def stack(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    shape = t.shape(node)
    dim = (a.get("dim") or 0) % len(shape)
    one = [*shape[:dim], 1, *shape[dim + 1 :]]
    values = [Value(tuple(one), [np.expand_dims(f, dim) for f in t.value(n).factors]) for n in a["tensors"]]
    return Value(shape, concatenate(t, values, dim))


def concatenate(t: Tracer, values: Sequence[Value], dim: int) -> list[Factor]:
    """Along `dim` the labels follow each other; across the other dims the operands must agree."""
    rank = len(values[0].shape)
    settled = [t.labels.settle(v.factors) for v in values]
    result: list[Factor] = []
    others = []
    joined = components([varying(f) for factors in settled for f in factors])
    along = next((dims for dims in joined if dim in dims), None)
    if along is not None:
        pieces = []
        for value, factors in zip(values, settled):
            own = [f for f in factors if varying(f) <= along]
            one = t.labels.only_one(own) if own else np.full((1,) * rank, PIN)
            pieces.append(materialize(one, value.shape, [dim]))
        wide = [max(p.shape[d] for p in pieces) for d in range(rank)]
        whole = [np.broadcast_to(p, [*wide[:dim], p.shape[dim], *wide[dim + 1 :]]) for p in pieces]
        result.append(np.concatenate(whole, dim))
    for value, factors in zip(values, settled):
        spans = [size > 1 and d != dim for d, size in enumerate(value.shape)]
        others.append(([f for f in factors if along is None or not varying(f) <= along], spans))
    return result + t.labels.unify(others, "concatenated with a fixed size")


def pad(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Padding with a constant makes positions that nobody needs: fresh labels."""
    x = t.value(a["self"])
    after = t.shape(node)
    rank = len(after)
    padded = {
        rank - 1 - i: (a["pad"][2 * i], a["pad"][2 * i + 1])
        for i in range(len(a["pad"]) // 2)
        if any(isinstance(p, fx.Node) or p for p in a["pad"][2 * i : 2 * i + 2])
    }
    constant = a.get("mode", "constant") == "constant" and all(
        isinstance(p, int) and p >= 0 for pair in padded.values() for p in pair
    )
    if not constant:
        return Value(after, t.labels.fix(x.factors, padded, "padded with its own values"))
    factors = list(x.factors)
    for dim, (low, high) in padded.items():
        own = [f for f in factors if f.shape[dim] > 1]
        rest = [f for f in factors if f.shape[dim] == 1]
        one = t.labels.only_one(own) if own else np.full((1,) * rank, PIN)
        size = x.shape[dim]
        one = materialize(one, x.shape, [dim])

        def sides(count: int, one: Factor = one, dim: int = dim) -> Factor:
            shape = [1] * rank
            shape[dim] = count
            wide = list(one.shape)
            wide[dim] = count
            return np.broadcast_to(t.labels.fresh(count).reshape(shape), wide)

        if size + low + high != after[dim]:
            return t.unknown(node)
        factors = [*rest, np.concatenate([sides(low), one, sides(high)], dim)]
    return Value(after, factors)


def flip(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    return Value(x.shape, [np.flip(f, tuple(as_dims(a["dims"], len(x.shape)))) for f in x.factors])


def roll(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Without dims, all values move as one line."""
    x = t.value(a["self"])
    if not a["dims"] or any(isinstance(shift, fx.Node) for shift in a["shifts"]):
        return t.unknown(node)
    dims = as_dims(a["dims"], len(x.shape))
    moved = []
    for f in x.factors:
        along = [(shift, dim) for shift, dim in zip(a["shifts"], dims) if f.shape[dim] > 1]
        moved.append(np.roll(f, [shift for shift, _ in along], [dim for _, dim in along]) if along else f)
    return Value(x.shape, moved)


def rot90(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    dims = as_dims(a["dims"], len(x.shape))
    return Value(t.shape(node), [np.rot90(f, a["k"], (dims[0], dims[1])) for f in x.factors])


def block_diag(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Rows follow rows and columns columns; between the blocks there is nothing that could be tied."""
    sides: list[list[Factor]] = [[], []]
    for value in map(t.value, a["tensors"]):
        shape = (1,) * (2 - len(value.shape)) + value.shape
        own = [np.full(size, PIN) for size in shape]
        for f in t.labels.settle(f.reshape((1,) * (2 - f.ndim) + f.shape) for f in value.factors):
            along = varying(f)
            if len(along) == 1:
                own[next(iter(along))] = f.ravel()
            else:
                t.labels.pin(f, "a block of a diagonal")
        for side, labels in zip(sides, own):
            side.append(labels)
    rows, columns = (np.concatenate(side) for side in sides)
    return Value(t.shape(node), [rows[:, None], columns[None, :]])


def diagonal(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """diagonal, and diag_embed which undoes it: what lies on it has a place in both dims."""
    x = t.value(a["self"])
    after = t.shape(node)
    embeds = len(after) > len(x.shape)
    dims = [len(x.shape) - 1] if embeds else [x.at(a["dim1"]), x.at(a["dim2"])]
    fixed = t.labels.fix(x.factors, dims, "a diagonal")
    if embeds:
        made = sorted(d % len(after) for d in (a["dim1"], a["dim2"]))
        fixed = [np.expand_dims(f[..., 0], made) for f in fixed]
    else:
        fixed = [np.squeeze(f, tuple(dims))[..., None] for f in fixed]
    return Value(after, fixed)
