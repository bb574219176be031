"""What moves values: transposed, reshaped, cut, joined."""

from __future__ import annotations

import numpy as np
import torch
from onnx import helper

from benchmarks.onnx_ops.chain import OPS, Chain, op

PERMUTATIONS = ((0, 1, 3, 2), (0, 2, 3, 1), (1, 0, 2, 3), (0, 3, 1, 2))
for perm in PERMUTATIONS:
    OPS[f"transpose({','.join(map(str, perm))})"] = lambda c, p=perm: c.then(
        c.x.permute(p), "Transpose", perm=list(p)
    )


@op("reshape(0,-1,2)")
def _(c: Chain) -> None:
    c.then(c.x.reshape(c.x.shape[0], -1, 2), "Reshape", c.ints(0, -1, 2))


@op("reshape(rows)")
def _(c: Chain) -> None:
    c.then(c.x.reshape(-1, c.x.shape[-1]), "Reshape", c.ints(-1, c.x.shape[-1]))


@op("unsqueeze,squeeze")
def _(c: Chain) -> None:
    c.value = c.add("Squeeze", c.add("Unsqueeze", c.value, c.ints(1)), c.ints(1))


@op("slice(steps)")
def _(c: Chain) -> None:
    c.then(c.x[..., ::2], "Slice", c.ints(0), c.ints(2**31), c.ints(-1), c.ints(2))


@op("slice(backwards)")
def _(c: Chain) -> None:
    c.then(c.x.flip(-1), "Slice", c.ints(-1), c.ints(-(2**31)), c.ints(-1), c.ints(-1))


@op("slice(1:-1)")
def _(c: Chain) -> None:
    c.then(c.x[:, 1:-1], "Slice", c.ints(1), c.ints(-1), c.ints(1))


@op("gather(0)")
def _(c: Chain) -> None:
    c.then(c.x[:, 0], "Gather", c.constant(0, np.int64), axis=1)


@op("gather(2,-1)")
def _(c: Chain) -> None:
    c.then(c.x[:, [2, -1]], "Gather", c.ints(2, -1), axis=1)


@op("split,swap")
def _(c: Chain) -> None:
    a, b = c.x.split([1, c.x.shape[1] - 1], 1)
    c.nodes.append(
        helper.make_node(
            "Split", [c.value, c.ints(1, c.x.shape[1] - 1)], [f"a{len(c.nodes)}", f"b{len(c.nodes)}"], axis=1
        )
    )
    parts = c.nodes[-1].output
    c.value, c.x = c.add("Concat", parts[1], parts[0], axis=1), torch.cat([b, a], 1)


for axis in (1, -1):
    OPS[f"concat(x,x;{axis})"] = lambda c, a=axis: c.then(torch.cat([c.x, c.x], a), "Concat", c.value, axis=a)


@op("concat(constant)")
def _(c: Chain) -> None:
    other = c.weight(*c.x.shape, salt="concat")
    c.then(torch.cat([c.x, other], 1), "Concat", c.constant(other), axis=1)


@op("expand")
def _(c: Chain) -> None:
    c.then(c.x.expand(3, *c.x.shape), "Expand", c.ints(3, *[1] * c.x.dim()))


@op("tile")
def _(c: Chain) -> None:
    c.then(c.x.repeat(*[1] * (c.x.dim() - 1), 2), "Tile", c.ints(*[1] * (c.x.dim() - 1), 2))
