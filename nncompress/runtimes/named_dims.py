"""What a file's names of dynamic dims mean: which of them is the batch, and which are no names at all.

A file from elsewhere calls a dim what its exporter liked: "N", "batch_size", "unk__7", "?", or nothing. Dims
without a name of their own are equal to no other; "?" twice is two sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from nncompress.ir.graph.inputs import BATCH, InputSpec, with_batch_dims

_NAMELESS = re.compile(r"|unk__.*|.*[?*].*|-\d+|none|unknown.*|dynamic.*", re.IGNORECASE)
_BATCH_NAMES = ("batch", "batch_size", "batchsize", "batch_dim", "n", "b", "bs")


def with_named_dims(specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The specs with every nameless dim called after its place, and the one along which samples lie "batch".

    That is the dim with a usual name of it; else the first of all inputs, where all are dynamic; else the
    name that most inputs share, among equals one that is a first dim.
    """
    named = [
        replace(
            spec,
            shape=tuple(
                f"{spec.name}_{axis}" if isinstance(d, str) and _NAMELESS.fullmatch(d) else d
                for axis, d in enumerate(spec.shape)
            ),
        )
        for spec in specs
    ]
    batch = _batch_of(named)
    shapes = [tuple(BATCH if d in batch else d for d in spec.shape) for spec in named]
    return tuple(with_batch_dims([replace(s, shape=shape) for s, shape in zip(named, shapes)]))


def usual_batch(names: Iterable[str]) -> str | None:
    """The one that usually means the batch."""
    return min(
        (n for n in names if n.lower() in _BATCH_NAMES),
        key=lambda n: _BATCH_NAMES.index(n.lower()),
        default=None,
    )


def _batch_of(specs: Sequence[InputSpec]) -> set[str]:
    names = dict.fromkeys(d for spec in specs for d in spec.shape if isinstance(d, str))
    usual = usual_batch(names)
    if usual is not None:
        return {usual}
    first = [spec.shape[0] for spec in specs if spec.shape]
    if first and all(isinstance(d, str) for d in first):
        return {d for d in first if isinstance(d, str)}
    shared = max(
        names,
        key=lambda n: (sum(n in s.shape for s in specs), sum(s.shape[:1] == (n,) for s in specs)),
        default=None,
    )
    return set() if shared is None else {shared}
