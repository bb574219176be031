"""The principal axes of what the norms make of a residual stream: most of it lies along the first few."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.moments import Moments
from nncompress.analysis.observe.statistics import observe
from nncompress.analysis.observe.walk import Inputs
from nncompress.ir import Model
from nncompress.passes.invariance.rotation.streams import Stream
from nncompress.progress import Progress


def principal_axes(
    model: Model, streams: Sequence[Stream], batches: Sequence[Inputs], total: int | None, progress: Progress
) -> list[Tensor]:
    """Q of each stream, orthogonal, float64 [width, width]: its columns in falling order of their share.

    Ashkboos et al. 2024, "SliceGPT", who take other axes in every block.

    Args:
        streams: whose norms scale nothing any more.
        total: number of samples to come, for the progress display.
    """
    seen = [Moments() for _ in streams]
    watches: dict[fx.Node, list[Callable[[Tensor], None]]] = {}
    for stream, moments in zip(streams, seen, strict=True):
        for node in stream.normed:
            watches.setdefault(node, []).append(_rows_into(moments))
    observe(model, batches, watches, progress=progress, total=total, description="finding axes")
    return [torch.linalg.eigh(moments.products[0])[1].flip(1) for moments in seen]


def _rows_into(moments: Moments) -> Callable[[Tensor], None]:
    def add(value: Tensor) -> None:
        moments.add(value.reshape(1, -1, value.shape[-1]))

    return add
