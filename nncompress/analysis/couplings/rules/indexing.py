"""Rules of ops that read or write at positions given by an index: the indexed dim stays as it is.

Every rule takes `(trace, node, a)`, `a` being the arguments by schema name, and returns the labelled result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from nncompress.analysis.couplings.labels import Factor
from nncompress.analysis.couplings.tracer import Tracer
from nncompress.analysis.couplings.value import Arguments, Result, Value
from nncompress.ir.edit.picked import listed_pick
from nncompress.ir.graph.ops import op_name


def index(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """x[i, :, j]: the indexed dims are fixed, the others keep their labels; by a stored list they move."""
    x = t.value(a["self"])
    if (found := listed_pick(node)) is not None:
        return _listed(t, node, x, *found)
    where = _indexed(t, a["indices"])
    fixed = t.labels.fix(x.factors, where, "indexed")
    after = t.shape(node)
    return Value(after, _picked(fixed, where, len(after)))


def _listed(
    t: Tracer, node: fx.Node, x: Value, index: fx.Node, dim: int, picked: NDArray[np.int64]
) -> Result:
    """A list that the model stores picks from a dim: the labels move as the data do."""
    t.fix_all(t.value(index), "a list of indices")
    return Value(t.shape(node), [f if f.shape[dim] == 1 else np.take(f, picked, dim) for f in x.factors])


def _indexed(t: Tracer, indices: Sequence[fx.Node | None]) -> list[int]:
    """The dims of `x` that `x[indices]` reads by index; a mask of booleans takes as many as it has."""
    where: list[int] = []
    dim = 0
    for node in indices:
        taken = 1
        if node is not None:
            value = t.value(node)
            t.fix_all(value, "used as an index")
            if node.meta["val"].dtype in (torch.bool, torch.uint8):
                taken = len(value.shape)
            where += range(dim, dim + taken)
        dim += taken
    return where


def _picked(factors: Sequence[Factor], where: Sequence[int], rank: int) -> list[Factor]:
    """The labels of `x[indices]`, which has `rank` dims: those of the index tensors stand where the first
    indexed dim was, or in front where the indexed dims do not follow each other."""
    together = list(where) == list(range(where[0], where[-1] + 1))
    at = where[0] if together else 0
    picked = []
    for f in factors:
        rest = [size for d, size in enumerate(f.shape) if d not in where]
        picked.append(f.reshape(rest[:at] + [1] * (rank - len(rest)) + rest[at:]))
    return picked


def index_put(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """x[i, :, j] = values: the indexed dims are fixed, in the others x and the values agree."""
    x, values = t.value(a["self"]), t.value(a["values"])
    where = _indexed(t, a["indices"])
    fixed = t.labels.fix(x.factors, where, "indexed")
    kept = [size for d, size in enumerate(x.shape) if d not in where]
    indexed = [len(t.value(i).shape) for i in a["indices"] if i is not None]
    masks = any(i is not None and i.meta["val"].dtype in (torch.bool, torch.uint8) for i in a["indices"])
    rank = len(kept) + (1 if masks else max(indexed))
    if len(values.shape) > rank:
        return t.unknown(node)
    picked = _picked(fixed, where, rank)
    at = where[0] if list(where) == list(range(where[0], where[-1] + 1)) else 0
    spans = [size > 1 for size in kept]
    spans[at:at] = [False] * (rank - len(kept))
    lead = rank - len(values.shape)
    given = t.labels.fix(
        values.factors, [d - lead for d in range(lead, rank) if not spans[d]], "put by index"
    )
    given = [f.reshape((1,) * lead + f.shape) for f in given]
    wide = [d >= lead and values.spans[d - lead] and spans[d] for d in range(rank)]
    t.labels.unify([(picked, spans), (given, wide)], "meets a fixed size")
    return Value(x.shape, t.labels.settle(fixed))


def slice_scatter(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """x[:, start:end] = source. Of two indices at one place both go, so that the sizes agree."""
    x, source = t.value(a["self"]), t.value(a["src"])
    dim = x.at(a["dim"])
    start, written = a.get("start") or 0, x.factors
    spans = source.spans
    if a.get("step", 1) != 1 or any(isinstance(a.get(k), fx.Node) for k in ("start", "end")):
        written = t.labels.fix(x.factors, [dim], "strided slice, or one of a dynamic size")
        source = Value(source.shape, t.labels.fix(source.factors, [dim], "put into such a slice"))
        spans[dim] = False
    else:
        start = max(start + x.shape[dim], 0) if start < 0 else start
        index = np.arange(start, start + source.shape[dim])
        written = [f if f.shape[dim] == 1 else np.take(f, index, dim) for f in x.factors]
    t.labels.unify([(written, spans), (source.factors, spans)], "meets a fixed size")
    return Value(x.shape, t.labels.settle(x.factors))


def select_scatter(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """x[:, index] = source: the dim is fixed, in the others both agree."""
    x, source = t.value(a["self"]), t.value(a["src"])
    dim = x.at(a["dim"])
    fixed = t.labels.fix(x.factors, [dim], "written by index")
    given = [np.expand_dims(f, dim) for f in source.factors]
    spans = [d != dim and span for d, span in enumerate(x.spans)]
    return Value(x.shape, t.labels.unify([(fixed, spans), (given, spans)], "meets a fixed size"))


def embedding_bag(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Sums, means or maxima of rows that are looked up: a lookup whose columns pass."""
    w = t.value(a["weight"])
    for source in node.all_input_nodes:
        if source is not a["weight"]:
            t.fix_all(t.value(source), "used as an index")
    t.roles(a["weight"], outputs=[1], inputs=[])
    kept = t.labels.fix(w.factors, [0], "looked up by index")
    first, *rest = t.shape(node)
    return [Value(first, list(kept)), *(Value(shape) for shape in rest)]


def looked_up(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """bucketize: one number per value of the first tensor, read off the others."""
    x = t.value(a["self"])
    for source in node.all_input_nodes:
        if source is not a["self"]:
            t.fix_all(t.value(source), "sorted boundaries")
    return Value(x.shape, list(x.factors))


def index_select(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    if (found := listed_pick(node)) is not None:
        return _listed(t, node, x, *found)
    t.fix_all(t.value(a["index"]), "used as an index")
    dim = x.at(a["dim"])
    return Value(t.shape(node), t.labels.fix(x.factors, [dim], "indexed"))


def scattered(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """gather, scatter_add, index_add, …: `dim` is fixed, the other dims of all operands agree."""
    x = t.value(a["self"])
    dim = x.at(a["dim"])
    operands = []
    for value in t.operands(node):
        if len(value.shape) == 1 and len(x.shape) > 1:  # the index of index_add
            t.fix_all(value, "used as an index")
            continue
        if any(s != o and d != dim for d, (s, o) in enumerate(zip(value.shape, x.shape))):
            return t.unknown(node)
        factors = t.labels.fix(value.factors, [dim], "indexed")
        operands.append((factors, [size > 1 and d != dim for d, size in enumerate(value.shape)]))
    return Value(t.shape(node), t.labels.unify(operands, "meets a fixed size"))


def masked_scatter(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Rows of `source`, one after the other, where the mask says: image features among those of tokens.

    A mask of whole rows leaves every column in its place; any other takes elements wherever they come next.
    """
    x, mask, source = (t.value(a[name]) for name in ("self", "mask", "source"))
    rank = len(x.shape)
    rows = len(source.shape) <= rank and source.shape[-1:] == x.shape[-1:] and _same_along_rows(a["mask"])
    if not rows:
        return t.unknown(node)
    along = [d == rank - 1 for d in range(rank)]
    operands = []
    for value in (x, mask, source):
        lead = rank - len(value.shape)
        fixed = t.labels.fix(value.factors, range(len(value.shape) - 1), "taken in order, where a mask says")
        operands.append(
            (
                [f.reshape((1,) * lead + f.shape) for f in fixed],
                along if value.shape[-1] > 1 else [False] * rank,
            )
        )
    return Value(t.shape(node), t.labels.unify(operands, "meets a fixed size"))


def _same_along_rows(mask: fx.Node) -> bool:
    """Is it spread along the last dim, as by `mask[..., None].expand_as(x)`?"""
    while op_name(mask) in ("to", "_to_copy", "contiguous", "clone", "alias"):
        mask = mask.all_input_nodes[0]
    if op_name(mask) == "expand":
        mask = mask.all_input_nodes[0]
    return mask.meta["val"].shape[-1:] == (1,)


def sampled(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """grid_sampler: channels pass, positions are read at run time."""
    x, grid = t.operands(node)
    t.fix_all(grid, "used as positions")
    return Value(t.shape(node), t.labels.fix(x.factors, range(2, len(x.shape)), "sampled"))
