"""Rules of pointwise ops, reductions, pooling, norms and constants.

Every rule takes `(trace, node, a)`, `a` being the arguments by schema name, and returns the labelled result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from nncompress.analysis.couplings.labels import Factor, Labels, varying
from nncompress.analysis.couplings.value import Result, Value, as_dims
from nncompress.ir.normalize import op_name

if TYPE_CHECKING:
    from nncompress.analysis.couplings.trace import Trace

Arguments = dict[str, Any]


def pointwise(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """All tensor arguments broadcast; what stands at one position is united."""
    shape = t.shape(node)
    operands = []
    for value in t.operands(node):
        lead = len(shape) - len(value.shape)
        factors = [f.reshape((1,) * lead + f.shape) for f in value.factors]
        operands.append((factors, [False] * lead + value.spans))
    return Value(shape, t.labels.unify(operands, "meets a fixed size"))


def follow_first(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """Ops whose other tensor arguments give no positions: type_as, dropout, zeros_like."""
    x = t.value(node.args[0])
    return Value(t.shape(node), list(x.factors))


def prelu(t: Trace, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    return Value(x.shape, per_channel(t, x, [a["weight"]], 1))


def per_channel(t: Trace, x: Value, vectors: list[Any], dim: int) -> list[Factor]:
    """Vectors of dim `dim`'s size join its labels; absent (None) and one-element vectors do not."""
    rank = len(x.shape)
    operands = [(x.factors, x.spans)]
    for vector in vectors:
        if vector is None:
            continue
        v = t.value(vector)
        shape = [1] * rank
        shape[dim] = -1
        operands.append(
            ([f.reshape(shape) for f in v.factors], [d == dim and v.shape[0] > 1 for d in range(rank)])
        )
    return t.labels.unify(operands, "meets a fixed size")


def created(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """zeros, ones, full: uniform, so any index may go."""
    shape = t.shape(node)
    return Value(shape, [t.fresh(shape, d) for d, size in enumerate(shape) if size > 1 and t.static(node, d)])


def fixed(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """arange and the like: positions have a meaning."""
    return Value(t.shape(node))


def reduce(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """mean, sum, max, var, norm, …: the reduced dims are fixed."""
    x = t.value(node.args[0])
    dims = as_dims(a.get("dim", a.get("dims")), len(x.shape))
    if _is_mean_square(node):
        kept = [
            f
            for f in t.labels.settle(x.factors)
            if not varying(f) <= set(dims)  # those indices may go: the mean is then over the survivors
        ]
        t.survivor_norms[node] = tuple(dims)
        kept = t.labels.fix(kept, dims, "normalised over it")
    else:
        kept = t.labels.fix(x.factors, dims, f"{op_name(node)} over it")

    def result(shape: tuple[int, ...]) -> Value:
        if len(shape) == len(x.shape):
            return Value(shape, list(kept))
        return Value(shape, [np.squeeze(f, tuple(dims)) for f in kept])

    shapes = t.shape(node)
    return [result(s) for s in shapes] if isinstance(shapes, list) else result(shapes)


def _is_mean_square(node: fx.Node) -> bool:
    """The mean of an RMS norm that is written out: mean(x²), added to epsilon."""
    if op_name(node) != "mean" or not isinstance(node.args[0], fx.Node):
        return False
    square = node.args[0]
    name = op_name(square)
    squared = (
        (name == "pow" and square.args[1] == 2)
        or name == "square"
        or (name == "mul" and square.args[0] is square.args[1])
    )
    return squared and all(op_name(user) == "add" for user in node.users)


def along(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """softmax, cumsum, sort, roll, …: the shape stays, the dim is fixed."""
    x = t.value(node.args[0])
    dims = as_dims(a.get("dim", a.get("dims")), len(x.shape))
    kept = t.labels.fix(x.factors, dims, f"{op_name(node)} along it")
    shapes = t.shape(node)
    return [Value(s, list(kept)) for s in shapes] if isinstance(shapes, list) else Value(shapes, kept)


def spatial(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """Pooling and resampling over the last 1, 2 or 3 dims; batch and channels pass."""
    x = t.value(node.args[0])
    count = next((n for n in (1, 2, 3) if f"{n}d" in op_name(node)), len(x.shape) - 2)
    rank = len(x.shape)
    kept = t.labels.fix(x.factors, range(rank - count, rank), f"{op_name(node)} over it")
    shapes = t.shape(node)
    return [Value(s, list(kept)) for s in shapes] if isinstance(shapes, list) else Value(shapes, kept)


def last_two(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """tril, triu: the diagonal gives the last two dims a meaning."""
    x = t.value(a["self"])
    rank = len(x.shape)
    return Value(x.shape, t.labels.fix(x.factors, [rank - 2, rank - 1], op_name(node)))


def batch_norm(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """Also instance norm: everything is per channel."""
    x = t.value(a["input"])
    if op_name(node) == "instance_norm":
        x = Value(x.shape, t.labels.fix(x.factors, range(2, len(x.shape)), "normalised over it"))
    vectors = [a.get(k) for k in ("weight", "bias", "running_mean", "running_var")]
    return Value(x.shape, per_channel(t, x, vectors, 1))


def layer_norm(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """Also RMS norm. A lone normalised dim may lose indices: the norm is then over the survivors."""
    x = t.value(a["input"])
    rank, count = len(x.shape), len(a["normalized_shape"])
    dims = set(range(rank - count, rank))
    factors = []
    for f in t.labels.settle(x.factors):
        inside = {d for d in dims if f.shape[d] > 1}
        grid = inside and any(f.shape[d] > 1 for d in range(rank) if d not in dims)
        factors += t.labels.fix([f], inside, "normalised over it") if grid else [f]
    operands = [(factors, x.spans)]
    for vector in (a.get("weight"), a.get("bias")):
        if vector is not None:
            v = t.value(vector)
            lead = rank - len(v.shape)
            operands.append(([f.reshape((1,) * lead + f.shape) for f in v.factors], [False] * lead + v.spans))
    t.survivor_norms[node] = tuple(sorted(dims))
    return Value(x.shape, t.labels.unify(operands, "meets a fixed size"))


def group_norm(t: Trace, node: fx.Node, a: Arguments) -> Result:
    """A unit is a whole group, or the same index of every group (the norm is then over the survivors)."""
    x = t.value(a["input"])
    groups, channels = a["num_groups"], x.shape[1]
    factors = t.labels.fix(x.factors, range(2, len(x.shape)), "normalised over it")
    factors = per_channel(t, Value(x.shape, factors), [a.get("weight"), a.get("bias")], 1)
    for f in factors:
        if f.shape[1] > 1:
            grid = t.labels.unite_along(f, varying(f) - {1}).reshape(groups, channels // groups)
            rows_first = groups >= channels // groups
            t.decide_later([grid], *(_row, _column) if rows_first else (_column, _row))
            t.survivor_norms[node] = (1,)
    return Value(x.shape, factors)


def _row(labels: Labels, arrays: Sequence[Factor]) -> None:
    labels.unite_along(arrays[0], [1])


def _column(labels: Labels, arrays: Sequence[Factor]) -> None:
    labels.unite_along(arrays[0], [0])
