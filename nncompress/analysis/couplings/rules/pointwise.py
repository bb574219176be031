"""Rules of pointwise ops, reductions, pooling, norms and constants.

Every rule takes `(t, node, a)`: the tracer, the node, its arguments by schema name; it returns the labelled
result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from nncompress.analysis.couplings.labels import Factor, Labels, varying
from nncompress.analysis.couplings.tracer import Tracer
from nncompress.analysis.couplings.value import Arguments, Result, Value, as_dims
from nncompress.ir.graph.ops import RESHAPES, op_name


def pointwise(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """All tensor arguments broadcast; what stands at one position is united, in each of several results."""
    shapes = t.shape(node)
    shape = shapes[0] if isinstance(shapes, list) else shapes
    operands = []
    for value in t.operands(node):
        lead = len(shape) - len(value.shape)
        factors = [f.reshape((1,) * lead + f.shape) for f in value.factors]
        operands.append((factors, [False] * lead + value.spans))
    made = t.labels.unify(operands, "meets a fixed size")
    return [Value(s, list(made)) for s in shapes] if isinstance(shapes, list) else Value(shape, made)


def follow_first(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Ops whose other tensor arguments give no positions: type_as, dropout, zeros_like."""
    x = t.value(node.args[0])
    return Value(t.shape(node), list(x.factors))


def prelu(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    return Value(x.shape, per_channel(t, x, [a["weight"]], 1))


def per_channel(t: Tracer, x: Value, vectors: list[Any], dim: int) -> list[Factor]:
    """Vectors of dim `dim`'s size join its labels; absent (None) ones and those of one number do not."""
    rank = len(x.shape)
    operands = [(x.factors, x.spans)]
    for vector in vectors:
        v = t.value(vector)
        if not any(v.spans):
            continue
        shape = [1] * rank
        shape[dim] = -1
        operands.append(([f.reshape(shape) for f in v.factors], [d == dim for d in range(rank)]))
    return t.labels.unify(operands, "meets a fixed size")


def quantized(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """(De)quantize: per tensor it follows its input; per channel, scales and zero points join an axis; per
    group, they join the rows, and inputs of one group stand and fall together."""
    x = t.value(a["input"])
    if "group_size" in a:
        operands = [(x.factors, x.spans)]
        for grid in (a["scales"], a["zero_points"]):
            if grid is not None:
                factors = t.value(grid).factors
                spread = [np.repeat(f, a["group_size"], 1) if f.shape[1] > 1 else f for f in factors]
                operands.append((spread, [True, True]))
        return Value(x.shape, t.labels.unify(operands, "meets a fixed size"))
    if "axis" not in a:
        return Value(x.shape, list(x.factors))
    return Value(x.shape, per_channel(t, x, [a["scales"], a["zero_points"]], a["axis"]))


def gated(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """glu: the first half of a dim times the sigmoid of the second."""
    x = t.value(a["self"])
    dim = x.at(a["dim"])
    half = x.shape[dim] // 2
    shape = t.shape(node)
    operands = []
    for index in (np.arange(half), np.arange(half, 2 * half)):
        factors = [np.take(f, index, dim) if f.shape[dim] > 1 else f for f in x.factors]
        operands.append((factors, [size > 1 for size in shape]))
    return Value(shape, t.labels.unify(operands, "meets a fixed size"))


def as_complex(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """view_as_complex: the last dim, real and imaginary part, goes."""
    x = t.value(a["self"])
    last = len(x.shape) - 1
    return Value(t.shape(node), [f[..., 0] for f in t.labels.fix(x.factors, [last], "complex numbers")])


def as_real(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """view_as_real: a last dim of 2 comes."""
    return Value(t.shape(node), [f[..., None] for f in t.value(a["self"]).factors])


def created(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """zeros, ones, full: uniform, so any index may go."""
    shape = t.shape(node)
    return Value(shape, [t.fresh(shape, d) for d, size in enumerate(shape) if size > 1 and t.static(node, d)])


def fixed(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """arange and the like: positions have a meaning."""
    return Value(t.shape(node))


def reduce(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """mean, max, …: statistics (`STATISTICS`) are taken over the survivors; other reductions fix their dims.

    A sum, or a norm of an order from 0 on, of what is removed is 0: it is a contraction with ones.
    """
    x = t.value(node.args[0])
    dims = as_dims(a.get("dim", a.get("dims")), len(x.shape))
    own = [f for f in t.labels.settle(x.factors) if varying(f) <= set(dims)]
    sums = op_name(node) == "sum" and node.meta["val"].is_floating_point()
    if op_name(node) in ("linalg_vector_norm", "norm"):
        order = a.get("ord", a.get("p"))
        sums = order is None or (isinstance(order, int | float) and order >= 0)
    kept = x.factors
    if own and (sums or _is_statistic(node)):
        if sums:
            t.contraction(node, node.args[0], outputs=[], inputs=dims)
        else:
            t.survivor_norms[node] = tuple(dims)
        kept = [f for f in t.labels.settle(x.factors) if not varying(f) <= set(dims)]
    kept = t.labels.fix(kept, dims, f"{op_name(node)} over it")

    def result(shape: tuple[int, ...]) -> Value:
        if len(shape) == len(x.shape):
            return Value(shape, list(kept))
        return Value(shape, [np.squeeze(f, tuple(dims)) for f in kept])

    shapes = t.shape(node)
    return [result(s) for s in shapes] if isinstance(shapes, list) else result(shapes)


def dist(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """The norm of a difference, of an order from 0 on: what both are without adds nothing."""
    if isinstance(a.get("p", 2), fx.Node) or a.get("p", 2) < 0:
        return t.unknown(node)
    operands = t.operands(node)
    rank = max(len(value.shape) for value in operands)
    wide = []
    for source, value in zip((a["self"], a["other"]), operands):
        lead = rank - len(value.shape)
        wide.append(([f.reshape((1,) * lead + f.shape) for f in value.factors], [False] * lead + value.spans))
        t.contraction(node, source, outputs=[], inputs=list(range(len(value.shape))))
    t.labels.unify(wide, "meets a fixed size")
    return Value(())


def unpooled(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """max_unpool: batch and channels pass, and the places are those of the pool."""
    count = next(n for n in (2, 3) if f"{n}d" in op_name(node))
    operands = []
    for value in t.operands(node):
        rank = len(value.shape)
        kept = t.labels.fix(value.factors, range(rank - count, rank), f"{op_name(node)} over it")
        operands.append((kept, [s and d < rank - count for d, s in enumerate(value.spans)]))
    return Value(t.shape(node), t.labels.unify(operands, "meets a fixed size"))


STATISTICS = {"mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "logsumexp"}


def _is_statistic(node: fx.Node) -> bool:
    """Whether fewer positions give the same kind of number: not where the place of a maximum is asked for."""
    values = node.meta["val"]
    if op_name(node) in ("max", "min") and isinstance(values, list | tuple):
        return all(op_name(user) == "getitem" and user.args[1] == 0 for user in node.users)
    return op_name(node) in STATISTICS


def _squared(node: fx.Node) -> bool:
    name = op_name(node)
    if name == "mul":
        return node.args[0] is node.args[1]
    return name == "square" or (name == "pow" and bool(node.args[1] == 2))


def along(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """softmax, cumsum, sort, …: the shape stays, the dim is fixed."""
    x = t.value(node.args[0])
    dims = as_dims(a.get("dim", a.get("dims")), len(x.shape))
    kept = t.labels.fix(x.factors, dims, f"{op_name(node)} along it")
    shapes = t.shape(node)
    return [Value(s, list(kept)) for s in shapes] if isinstance(shapes, list) else Value(shapes, kept)


def cross(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """linalg_cross: mixes the three indices of one dim; pointwise in the others."""
    shape = t.shape(node)
    dim = a["dim"] % len(shape)
    operands = [
        (t.labels.fix(v.factors, [dim], "a cross product"), [s and d != dim for d, s in enumerate(v.spans)])
        for v in t.operands(node)
    ]
    return Value(shape, t.labels.unify(operands, "meets a fixed size"))


def spatial(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Pooling and resampling over the last 1, 2 or 3 dims; batch and channels pass."""
    x = t.value(node.args[0])
    count = next((n for n in (1, 2, 3) if f"{n}d" in op_name(node)), len(x.shape) - 2)
    rank = len(x.shape)
    kept = t.labels.fix(x.factors, range(rank - count, rank), f"{op_name(node)} over it")
    shapes = t.shape(node)
    return [Value(s, list(kept)) for s in shapes] if isinstance(shapes, list) else Value(shapes, kept)


def average_pool(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Also a window of squares over the channels, the scale of a local response norm: over the survivors."""
    x, shape = t.value(a["self"]), t.shape(node)
    dim = len(x.shape) - len(a["kernel_size"])
    window, *others = a["kernel_size"]
    alone = all(n == 1 for n in (*others, *a["stride"])) and not any(a["padding"]) and not a["ceil_mode"]
    if not (alone and _of_squares(a["self"])):
        return spatial(t, node, a)
    middle = np.arange(window // 2, window // 2 + shape[dim])
    t.survivor_norms[node] = (dim,)
    return Value(shape, [f if f.shape[dim] == 1 else np.take(f, middle, dim) for f in x.factors])


def _of_squares(node: Any) -> bool:
    while isinstance(node, fx.Node) and op_name(node) in RESHAPES | {"pad", "constant_pad_nd"}:
        node = node.args[0]
    return isinstance(node, fx.Node) and _squared(node)


def last_two(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """tril, triu, inverses: the last two dims are those of a matrix, which is one thing."""
    x = t.value(node.args[0])
    rank = len(x.shape)
    return Value(t.shape(node), t.labels.fix(x.factors, [rank - 2, rank - 1], op_name(node)))


def solved(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """A x = b (x A = b with left=False): columns (rows) of b are systems of their own."""
    shape = t.shape(node)
    rank = len(shape)
    matrix, sides = (t.value(a[n]) for n in (("input2", "self") if "input2" in a else (next(iter(a)), "B")))
    if len(sides.shape) != rank or len(matrix.shape) > rank:
        return t.unknown(node)  # several vectors, or one matrix for several systems
    mixed = rank - 2 if a.get("left", True) else rank - 1
    operands = []
    for value, fixed in ((matrix, {rank - 2, rank - 1}), (sides, {mixed})):
        lead = rank - len(value.shape)
        kept = t.labels.fix([f.reshape((1,) * lead + f.shape) for f in value.factors], fixed, op_name(node))
        spans = [False] * lead + value.spans
        operands.append((kept, [span and d not in fixed for d, span in enumerate(spans)]))
    return Value(shape, t.labels.unify(operands, "meets a fixed size"))


def renorm(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Each index of one dim is scaled by its own norm over all others."""
    x = t.value(a["self"])
    others = set(range(len(x.shape))) - {x.at(a["dim"])}
    return Value(x.shape, t.labels.fix(x.factors, others, "a norm over it"))


def batch_norm(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Also instance norm: everything is per channel."""
    x = t.value(a["input"])
    if op_name(node) == "instance_norm":
        x = Value(x.shape, t.labels.fix(x.factors, range(2, len(x.shape)), "normalised over it"))
    vectors = [a.get(k) for k in ("weight", "bias", "running_mean", "running_var")]
    return Value(x.shape, per_channel(t, x, vectors, 1))


def layer_norm(t: Tracer, node: fx.Node, a: Arguments) -> Result:
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


def group_norm(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """A unit is a whole group, or the same index of every group (the norm is then over the survivors)."""
    x = t.value(a["input"])
    groups, channels = a["num_groups"], x.shape[1]
    factors = t.labels.fix(x.factors, range(2, len(x.shape)), "normalised over it")
    factors = per_channel(t, Value(x.shape, factors), [a.get("weight"), a.get("bias")], 1)
    for f in factors:
        if f.shape[1] > 1:
            grid = t.labels.unite_along(f, varying(f) - {1}).reshape(groups, channels // groups)
            rows_first = groups >= channels // groups
            t.labels.decide_later([grid], *(_row, _column) if rows_first else (_column, _row))
            t.survivor_norms[node] = (1,)
    return Value(x.shape, factors)


def _row(labels: Labels, arrays: Sequence[Factor]) -> None:
    labels.unite_along(arrays[0], [1])


def _column(labels: Labels, arrays: Sequence[Factor]) -> None:
    labels.unite_along(arrays[0], [0])
