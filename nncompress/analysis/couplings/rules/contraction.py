"""Rules of contractions: convolution, linear, matmul, attention.

A contraction is a pointwise product in the joint space of all its dims, summed over some of them. So dims
that both operands have are united, dims of one operand pass to the result, and a contracted dim may lose an
index if both operands lose it: the index then contributes what it contributes when its weights are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from nncompress.analysis.couplings.labels import PIN, Factor, Labels, varying
from nncompress.analysis.couplings.rules.pointwise import per_channel
from nncompress.analysis.couplings.tracer import Tracer
from nncompress.analysis.couplings.value import Arguments, Result, Value
from nncompress.ir.graph.ops import op_name


def contract(
    t: Tracer, operands: Sequence[tuple[Value, Sequence[str]]], out: Sequence[str], shape: tuple[int, ...]
) -> Value:
    """Contract operands whose dims are named by `letters` to a result with dims `out`."""
    letters = list(dict.fromkeys(letter for _, names in operands for letter in names))
    summed = [i for i, letter in enumerate(letters) if letter not in out]
    count = [sum(letter in names for _, names in operands) for letter in letters]
    batch = {i for i, letter in enumerate(letters) if letter in out and count[i] == len(operands) > 1}
    embedded = []
    for value, names in operands:
        factors = [_embed(f, names, letters) for f in t.labels.settle(value.factors)]
        kept = []
        for f in factors:
            along = varying(f)
            if along & batch and along - batch:  # whole heads: a batch dim wins over what it contains
                kept += t.labels.fix([f], along - batch, "inside a head")
            else:
                kept.append(f)
        sizes = dict(zip(names, value.shape))
        embedded.append((kept, [sizes.get(letter, 1) > 1 for letter in letters]))
    result = []
    for f in t.labels.unify(embedded, "meets a fixed size"):
        along = varying(f)
        if along & set(summed):
            if along <= set(summed):
                continue
            f = t.labels.unite_along(f, along & set(summed))
        result.append(_embed(f, letters, out, drop=True))
    return Value(shape, result)


def _embed(f: Factor, names: Sequence[str], into: Sequence[str], drop: bool = False) -> Factor:
    """Permute a factor over dims `names` to dims `into`, size 1 where it has none."""
    order = [names.index(letter) for letter in into if letter in names]
    rest = [i for i in range(len(names)) if i not in order]
    moved = f.transpose(order + rest).reshape([f.shape[i] for i in order])
    sizes = dict(zip([names[i] for i in order], moved.shape))
    return moved.reshape([sizes.get(letter, 1) for letter in into])


def add_bias(t: Tracer, value: Value, bias: Any, dim: int) -> Value:
    """A bias vector joins the labels of `dim`."""
    if bias is None:
        return value
    return Value(value.shape, per_channel(t, value, [bias], value.at(dim)))


def linear(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x, w = t.value(a["input"]), t.value(a["weight"])
    lead = [f"b{i}" for i in range(len(x.shape) - 1)]
    made = ["o"] if len(w.shape) > 1 else []
    t.contraction(node, a["weight"], outputs=[0] * len(made), inputs=[len(made)])
    out = contract(t, [(x, [*lead, "k"]), (w, [*made, "k"])], [*lead, *made], t.shape(node))
    return add_bias(t, out, a.get("bias"), -1)


def matmul(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """matmul, mm, bmm, mv, dot: batch dims broadcast."""
    first, second = [v for k, v in a.items() if isinstance(v, fx.Node)][:2]
    return product(t, node, first, second, t.shape(node))


def product(t: Tracer, node: fx.Node, first: fx.Node, second: fx.Node, shape: tuple[int, ...]) -> Value:
    x, y = t.value(first), t.value(second)
    rank = max(len(x.shape), len(y.shape))
    lead = [f"b{i}" for i in range(rank - 2)]
    left = [*lead, "m", "k"][rank - len(x.shape) :] if len(x.shape) > 1 else ["k"]
    right = [*lead, "k", "n"][rank - len(y.shape) :] if len(y.shape) > 1 else ["k"]
    out = [*lead, *(["m"] if len(x.shape) > 1 else []), *(["n"] if len(y.shape) > 1 else [])]
    columns = [len(y.shape) - 1] if len(y.shape) > 1 else []
    t.contraction(node, second, outputs=columns, inputs=[max(len(y.shape) - 2, 0)])
    if len(x.shape) > 1:  # either side may hold the weight
        t.roles(first, outputs=[len(x.shape) - 2], inputs=[len(x.shape) - 1])
    return contract(t, [(x, left), (y, right)], out, shape)


def addmm(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """addmm, baddbmm, addbmm-free: bias + first @ second."""
    first, second = (a[k] for k in a if k.startswith(("mat", "batch")))
    shape = t.shape(node)
    made = product(t, node, first, second, shape)
    bias = t.value(a["self"])
    lead = len(shape) - len(bias.shape)
    operands = [
        (made.factors, made.spans),
        ([f.reshape((1,) * lead + f.shape) for f in bias.factors], [False] * lead + bias.spans),
    ]
    return Value(shape, t.labels.unify(operands, "meets a fixed size"))


def addbmm(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """bias + the sum over the batch of first @ second."""
    first, second, bias = t.value(a["batch1"]), t.value(a["batch2"]), t.value(a["self"])
    t.contraction(node, a["batch2"], outputs=[2], inputs=[0, 1])
    t.roles(a["batch1"], outputs=[1], inputs=[0, 2])
    shape = t.shape(node)
    made = contract(t, [(first, ["b", "m", "k"]), (second, ["b", "k", "n"])], ["m", "n"], shape)
    lead = 2 - len(bias.shape)
    given = [f.reshape((1,) * lead + f.shape) for f in bias.factors]
    operands = [(made.factors, made.spans), (given, [False] * lead + bias.spans)]
    return Value(shape, t.labels.unify(operands, "meets a fixed size"))


def addr(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """bias + the outer product of two vectors."""
    shape = t.shape(node)
    rows, columns, bias = (t.value(a[name]) for name in ("vec1", "vec2", "self"))
    lead = 2 - len(bias.shape)
    operands: list[tuple[list[Factor], list[bool]]] = [
        ([f.reshape(-1, 1) for f in rows.factors], [shape[0] > 1, False]),
        ([f.reshape(1, -1) for f in columns.factors], [False, shape[1] > 1]),
        ([f.reshape((1,) * lead + f.shape) for f in bias.factors], [False] * lead + bias.spans),
    ]
    return Value(shape, t.labels.unify(operands, "meets a fixed size"))


def cdist(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Distances between rows: what both are without adds nothing, as the difference of zeros."""
    x, y = t.value(a["x1"]), t.value(a["x2"])
    lead = [f"b{i}" for i in reversed(range(max(len(x.shape), len(y.shape)) - 2))]
    operands = []
    for side, value, row in ((a["x1"], x, "p"), (a["x2"], y, "r")):
        rank = len(value.shape)
        t.contraction(node, side, outputs=[rank - 2], inputs=[rank - 1])
        operands.append((value, [*lead[len(lead) - (rank - 2) :], row, "m"]))
    return contract(t, operands, [*lead, "p", "r"], t.shape(node))


def einsum(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Any number of operands; a letter that one operand repeats (a diagonal) is not followed."""
    tensors, values = a["tensors"], [t.value(tensor) for tensor in a["tensors"]]
    names, out = _letters(a["equation"].replace(" ", ""), [len(v.shape) for v in values])
    if any(len(set(n)) < len(n) for n in names):
        return t.unknown(node)
    count = {letter: sum(letter in n for n in names) for n in names for letter in n}
    left = {letter for letter in count if letter not in out}
    for position, (tensor, n) in enumerate(zip(tensors, names)):  # one of the operands of every sum
        summed = [letter for letter in n if letter in left and (position or count[letter] == 1)]
        left.difference_update(summed)
        if summed or (position and len(tensors) == 2):
            made = [n.index(letter) for letter in n if letter in out] if position else []
            t.contraction(node, tensor, outputs=made, inputs=[n.index(letter) for letter in summed])
    return contract(t, list(zip(values, names)), out, t.shape(node))


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Names of the operands' dims and of the result; those of an ellipsis are "0", "1", … from the right."""
    terms, arrow, out = equation.partition("->")
    names = []
    for term, rank in zip(terms.split(","), ranks, strict=True):
        before, dots, after = term.partition("...")
        free = rank - len(before) - len(after) if dots else 0
        names.append([*before, *map(str, reversed(range(free))), *after])
    longest = [str(d) for d in reversed(range(max(sum(n.isdigit() for n in term) for term in names)))]
    if not arrow:  # the letters that occur once, in alphabetical order
        every = [n for term in names for n in term if not n.isdigit()]
        return names, longest + sorted(n for n in every if every.count(n) == 1)
    before, dots, after = out.partition("...")
    return names, [*before, *(longest if dots else []), *after]


def attention(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """scaled_dot_product_attention: scores over d, softmax over the keys, values."""
    q, k, v = (t.value(a[n]) for n in ("query", "key", "value"))
    rank = len(q.shape)
    lead = [f"b{i}" for i in range(rank - 2)]
    if a.get("enable_gqa") and q.shape[-3] != k.shape[-3]:
        k, v = (_shared_by_heads(x, q.shape[-3]) for x in (k, v))
    scores_shape = (*np.broadcast_shapes(q.shape[:-2], k.shape[:-2]), q.shape[-2], k.shape[-2])
    scores = contract(t, [(q, [*lead, "l", "d"]), (k, [*lead, "s", "d"])], [*lead, "l", "s"], scores_shape)
    operands = [(scores.factors, scores.spans)]
    if a.get("attn_mask") is not None:
        mask = t.value(a["attn_mask"])
        more = rank - len(mask.shape)
        operands.append(
            ([f.reshape((1,) * more + f.shape) for f in mask.factors], [False] * more + mask.spans)
        )
    factors = t.labels.unify(operands, "meets a fixed size")
    scores = Value(scores_shape, t.labels.fix(factors, [rank - 1], "softmax over it"))
    fixed_keys = Value(v.shape, t.labels.fix(v.factors, [rank - 2], "attended over"))
    t.contraction(node, a["key"], outputs=[], inputs=[rank - 1])
    return contract(
        t, [(scores, [*lead, "l", "s"]), (fixed_keys, [*lead, "s", "e"])], [*lead, "l", "e"], t.shape(node)
    )


def _shared_by_heads(x: Value, heads: int) -> Value:
    """Keys or values `[.., groups, s, d]` as the query's heads see them; a single group is broadcast."""
    dim, groups = len(x.shape) - 3, x.shape[-3]
    if groups == 1:
        return x
    factors = [np.repeat(f, heads // groups, dim) if f.shape[dim] > 1 else f for f in x.factors]
    return Value((*x.shape[:dim], heads, *x.shape[dim + 1 :]), factors)


def convolution(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Plain, depthwise, grouped and transposed, 1 to 3 spatial dims."""
    x, w = t.value(a["input"]), t.value(a["weight"])
    rank, groups = len(w.shape), t.number(a["groups"])
    if len(x.shape) != rank:
        return t.unknown(node)  # no batch dim
    transposed = a["transposed"] if "transposed" in a else "transpose" in op_name(node)
    space = [f"s{i}" for i in range(rank - 2)]
    same = [_keeps_positions(a, w.shape, d) for d in range(rank - 2)]
    moved = [2 + d for d, keep in enumerate(same) if not keep]
    x = Value(x.shape, t.labels.fix(x.factors, moved, "convolved over it"))
    w = Value(w.shape, t.labels.fix(w.factors, range(2, rank), "a kernel's extent"))
    o, i = (1, 0) if transposed else (0, 1)
    t.contraction(node, a["weight"], outputs=[o], inputs=[i])
    kernel = [f"k{d}" for d in range(rank - 2)]
    shape = t.shape(node)
    if groups == 1:
        names = ["o", "c"] if not transposed else ["c", "o"]
        out = contract(t, [(x, ["n", "c", *space]), (w, [*names, *kernel])], ["n", "o", *space], shape)
    else:
        out = _grouped(t, x, w, groups, transposed, shape, alike=groups is not a["groups"])
    return add_bias(t, out, a.get("bias"), 1)


def _keeps_positions(a: Arguments, weight: tuple[int, ...], d: int) -> bool:
    def at(value: Any) -> Any:
        return value if isinstance(value, int | str) else value[d if len(value) > 1 else 0]

    pad = at(a["padding"])
    return weight[2 + d] == 1 and at(a["stride"]) == 1 and pad in (0, "valid", "same")


def _grouped(
    t: Tracer, x: Value, w: Value, groups: int, transposed: bool, shape: tuple[int, ...], alike: bool
) -> Value:
    """The grid groups x channels: a unit is a whole group, or a column, the same channel of every group.

    A whole group takes its inputs and outputs along; columns of inputs and of outputs stay apart. What gives
    more units is known when everything else is tied. The weight's dim 0 holds the channels of all groups
    (outputs; inputs if transposed), its dim 1 those of one group.

    Args:
        alike: there are as many groups as samples, each with a kernel of its own: all lose the same.
    """
    inner, made_inner = x.shape[1] // groups, shape[1] // groups
    space = [1] * (len(shape) - 2)
    others = []
    taken = np.full((groups, inner), PIN)
    for f in t.labels.settle(x.factors):
        if f.shape[1] == 1:
            others.append(f)
        else:
            taken = t.labels.unite_along(f, varying(f) - {1}).reshape(groups, inner)
    all_groups, one_group = np.full(w.shape[0], PIN), np.full(w.shape[1], PIN)
    for f in w.factors:
        if f.shape[0] > 1:
            all_groups = f.ravel()
        elif f.shape[1] > 1:
            one_group = f.ravel()
    if transposed:
        made = t.labels.fresh(shape[1], weak=False).reshape(groups, made_inner)
        t.labels.unite(taken, all_groups.reshape(groups, inner))
    else:
        made = all_groups.reshape(groups, made_inner)

    def whole_groups(labels: Labels, arrays: Sequence[Factor]) -> None:
        taken, made, one_group = arrays
        labels.unite(taken, taken[:, :1])
        labels.unite(made, taken[:, :1])
        if one_group.size > 1:
            labels.pin(one_group, "shared by all groups")

    def columns(labels: Labels, arrays: Sequence[Factor]) -> None:
        taken, made, one_group = arrays
        labels.unite(taken, taken[:1])
        labels.unite(made, made[:1])
        if one_group.size > 1:
            labels.unite(one_group, (made if transposed else taken)[0])

    options = [whole_groups, columns] if groups >= inner else [columns, whole_groups]
    if alike:
        columns(t.labels, [taken, made, one_group])
    elif inner == 1 and taken.any():
        whole_groups(t.labels, [taken, made, one_group])
    else:
        t.labels.decide_later([taken, made, one_group], *options)
    return Value(shape, [*others, made.reshape(1, -1, *space)])


def bilinear(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x, y, w = t.value(a["input1"]), t.value(a["input2"]), t.value(a["weight"])
    lead = [f"b{i}" for i in range(len(x.shape) - 1)]
    t.contraction(node, a["weight"], outputs=[0], inputs=[1, 2])
    operands = [(x, [*lead, "i"]), (y, [*lead, "j"]), (w, ["o", "i", "j"])]
    return add_bias(t, contract(t, operands, [*lead, "o"], t.shape(node)), a.get("bias"), -1)


def embedding(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    w, index = t.value(a["weight"]), t.value(a["indices"])
    t.fix_all(index, "used as an index")
    t.roles(a["weight"], outputs=[1], inputs=[])
    lead = len(index.shape)
    kept = t.labels.fix(w.factors, [0], "looked up by index")
    return Value(t.shape(node), [f.reshape((1,) * lead + (-1,)) for f in kept])
