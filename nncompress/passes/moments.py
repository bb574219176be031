"""The moments of what layers multiply, on the samples that a pass is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nncompress.analysis.observe.moments import InputMoments
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.layers.weights import Layer
from nncompress.passes.base import Context


def input_moments(
    model: Model, readers: Mapping[str, Sequence[Layer]], data: Dataset, context: Context
) -> InputMoments:
    """Of each of `readers` (see `InputMoments`), on the first `context.limit` samples."""
    return InputMoments(
        model,
        readers,
        data.input_batches(context.batch_size, context.limit),
        seed=context.seed,
        progress=context.progress,
        total=context.limit,
    )
