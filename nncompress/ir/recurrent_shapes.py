"""What fused recurrent layers return, told by its shapes, while torch traces them.

torch finds it by running them without values, step by step: that takes as long as the sequence is, and fixes
its length in the graph, in which the layer is one node all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import decomposition_table

_OPS = [getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


def _results(
    x: Tensor,
    states: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    last = [states] if isinstance(states, Tensor) else states
    size = last[0].shape[-1] * (2 if bidirectional else 1)
    return x.new_empty([*x.shape[:2], size]), *(torch.empty_like(state) for state in last)


@contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Meanwhile these ops only tell shapes where torch traces; tensors with values are computed as ever."""
    ops: list[Any] = _OPS
    places = [op.py_kernels for op in ops] + [decomposition_table]  # where torch.export, then a trace of its
    before = [dict(place) for place in places]  # graph look for what stands for them
    try:
        for op in ops:
            op.py_kernels.update(dict.fromkeys(_KEYS, _results))
            decomposition_table[op] = _results
            op._dispatch_cache.clear()
        yield
    finally:
        for place, kept in zip(places, before):
            place.clear()
            place.update(kept)
        for op in ops:
            op._dispatch_cache.clear()
