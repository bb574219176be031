"""What fused recurrent layers return, told by the shapes of one step, while torch traces them.

torch finds it by running them without values over all steps: that takes as long as the sequence is, and fixes
its length in the graph, in which the layer is one node all the same. One step asks as much of the shapes: the
op itself, with values, asks nothing, and reads beyond what does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import decomposition_table

_OPS = [getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)

Op = Callable[..., tuple[Tensor, ...]]


def _by_one_step(op: Op) -> Op:
    def results(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        batch_first = others[-1]
        step, *last = op(x.narrow(1 if batch_first else 0, 0, 1), *others)
        return step.new_empty([*x.shape[:2], step.shape[-1]]), *last

    return results


@contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Meanwhile torch traces one step of these ops; of tensors with values they compute all, as ever."""
    ops: list[Any] = _OPS
    places = [op.py_kernels for op in ops] + [decomposition_table]  # where torch.export, then a trace of its
    before = [dict(place) for place in places]  # graph look for what stands for them
    try:
        for op in ops:
            op.py_kernels.update({key: _by_one_step(op.py_kernels[key]) for key in _KEYS})
            decomposition_table[op] = _by_one_step(decomposition_table[op])
            op._dispatch_cache.clear()
        yield
    finally:
        for place, kept in zip(places, before):
            place.clear()
            place.update(kept)
        for op in ops:
            op._dispatch_cache.clear()
