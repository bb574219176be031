"""That a model in another form still computes what it did, in floats."""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress.analysis.observe.batch_size import largest_batch
from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.ir.graph.verify import drift
from nncompress.passes.base import Context

ALIKE = 1e-3  # how near the outputs stay


def outputs_of_few(model: Model, context: Context) -> tuple[Tensor, ...]:
    """Of two samples, or as many as the model takes; of random ones where there is no data."""
    count = model.fixed_batch or min(2, largest_batch(model))
    if context.data is None:
        inputs = model.example_inputs(count, context.seed)
    else:
        inputs = next(iter(context.data.batches(count, limit=count))).inputs
    with torch.no_grad():
        return model.outputs_of(*(x.clone() for x in inputs))


def prove_alike(
    name: str,
    model: Model,
    before: tuple[Tensor, ...],
    after: tuple[Tensor, ...],
    what: str,
    without: str,
) -> None:
    """Refuse outputs that moved.

    Args:
        name: of the pass.
        what: was done to the model; without: the flag that leaves it undone.

    Raises:
        VerificationError
    """
    worst = max((row.amount for row in drift(model, after, before)), default=0.0)
    if worst > ALIKE:
        raise VerificationError(
            f"{name}: {what} changed what the model computes in floats",
            got=f"outputs {worst:.2%} away",
            remedy=without,
        )
