"""Rules of ops that move data between channels and positions: run the same movement on the labels."""

from __future__ import annotations

import math

import numpy as np
from torch import fx

from nncompress.analysis.couplings.tracer import Tracer
from nncompress.analysis.couplings.value import Arguments, Result, Value


def pixel_shuffle(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """[N, C r r, H, W] -> [N, C, H r, W r]: r x r labels become one channel."""
    x = t.value(a["self"])
    rank, r = len(x.shape), a["upscale_factor"] ** 2
    channel = rank - 3
    factors = []
    for f in t.labels.fix(x.factors, [rank - 2, rank - 1], "space to depth"):
        if f.shape[channel] > 1:
            grid = f.reshape(*f.shape[:channel], -1, r, 1, 1)
            f = t.labels.unite_along(grid, [channel + 1]).reshape(*f.shape[:channel], -1, 1, 1)
        factors.append(f)
    return Value(t.shape(node), factors)


def pixel_unshuffle(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    rank, r = len(x.shape), a["downscale_factor"] ** 2
    fixed = t.labels.fix(x.factors, [rank - 2, rank - 1], "space to depth")
    return Value(t.shape(node), [np.repeat(f, r, rank - 3) if f.shape[rank - 3] > 1 else f for f in fixed])


def channel_shuffle(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    x = t.value(a["self"])
    factors = []
    for f in x.factors:
        if f.shape[1] > 1:
            grid = f.reshape(f.shape[0], a["groups"], -1, *f.shape[2:])
            f = t.labels.unite_along(grid, [1])  # the same index of every group
            f = np.broadcast_to(f, grid.shape).swapaxes(1, 2).reshape(f.shape[0], -1, *f.shape[3:])
        factors.append(f)
    return Value(x.shape, factors)


def unfold_patches(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """im2col: [N, C, H, W] -> [N, C k k, L]."""
    x = t.value(a["self"])
    if len(x.shape) != 4:
        return t.unknown(node)
    k = math.prod(a["kernel_size"])
    fixed = t.labels.fix(x.factors, [2, 3], "patches")
    return Value(
        t.shape(node),
        [(np.repeat(f, k, 1) if f.shape[1] > 1 else f).reshape(f.shape[0], -1, 1) for f in fixed],
    )


def fold_patches(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """col2im: [N, C k k, L] -> [N, C, H, W]."""
    x = t.value(a["self"])
    if len(x.shape) != 3:
        return t.unknown(node)
    k = math.prod(a["kernel_size"])
    factors = []
    for f in t.labels.fix(x.factors, [2], "patches"):
        if f.shape[1] > 1:
            f = t.labels.unite_along(f.reshape(f.shape[0], -1, k), [2])
        factors.append(f.reshape(f.shape[0], -1, 1, 1))
    return Value(t.shape(node), factors)


def windows(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """Tensor.unfold: sliding windows of one dim, put last."""
    x = t.value(a["self"])
    fixed = t.labels.fix(x.factors, [x.at(a["dimension"])], "windows")
    return Value(t.shape(node), [f[..., None] for f in fixed])
