"""A layer norm is an RMS norm of what has the mean 0, so where norms alone read a stream it may be centred.

Ashkboos et al. 2024, "SliceGPT": what writes into the stream takes its mean out, once and for all.
"""

from __future__ import annotations

import torch
from torch import fx

from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.layers.weights import argument
from nncompress.passes.invariance.rotation.streams import Stream

aten = torch.ops.aten


def centre(model: Model, stream: Stream) -> None:
    """The same function with RMS norms: everything that writes into the stream is centred, in place.

    `Model.refresh()` has to follow.
    """
    for name, dim in stream.written if stream.centred else ():
        tensor = model.tensor(name).detach()
        tensor.copy_((tensor.double() - tensor.double().mean(dim, keepdim=True)).to(tensor.dtype))
    for norm in stream.centred:
        _as_rms_norm(norm)


def _as_rms_norm(norm: fx.Node) -> None:
    x, shape, weight, bias, eps = (argument(norm, position) for position in range(5))
    with edit.inserting_before(norm) as call:
        normed = call(aten.rms_norm.default, x, shape, weight, eps)
        normed.meta.update(norm.meta)
        new = normed
        if bias is not None:
            new = call(aten.add.Tensor, normed, bias)
            new.meta.update(norm.meta)
    edit.replace_node(norm, new)
