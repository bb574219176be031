"""What makes up for the nodes that go, in closed form on data; and whether it does.

Fitted to fewer rows than a layer has inputs, weights are right about these rows and may be about nothing
else. How strongly each layer is held where it was follows from samples held out of its fit; whether the whole
helps, here from samples that the layers with few rows are fitted once more without (a head sees a row per
sample, so this is the usual case: what has enough rows keeps its weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from nncompress.analysis.compensation import Cut, Fitted, compensate, cut_walk, without_data
from nncompress.analysis.compensation.held_out import HELD_OUT, fit_and_decide, output_error
from nncompress.analysis.couplings import Couplings
from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.observe.residual import Branch
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.graph.inputs import count_samples
from nncompress.passes.base import Context

Batches = Sequence[tuple[Tensor, ...]]


def compensated(
    name: str,
    model: Model,
    couplings: Couplings,
    cut: Cut,
    branches: Sequence[Branch],
    data: Dataset,
    batches: Batches,
    context: Context,
) -> Fitted:
    """The weights that make up for the cut; where there are few samples, only if they do on held-out ones.

    Args:
        name: of the pass.
        branches: the residual branches of `model`.
        batches: of `data`, all that may be fitted to.
    """

    fit = partial(compensate, model, couplings, cut, branches, seed=context.seed, progress=context.progress)
    fitted = fit(batches)
    few = too_few(name, fitted.layers)
    if few is None:
        return fitted
    context.warn(few)
    left = f"{name}: what is left was not fitted to the data: "
    bare = without_data(model, cut)
    some, held = fit_and_decide(model, data, context.batch_size, context.limit)
    if held is some:  # a fixed batch, or nothing to hold out
        if sum(count_samples(model.inputs, batch) for batch in batches) >= HELD_OUT:
            return fitted
        context.notes.append(f"{left}fewer than {HELD_OUT} samples cannot tell whether that helps")
        return bare
    judged = fit(some, rest=fitted, only={rows.layer for rows in fitted.layers if rows.short})
    without, repaired = (
        output_error(model, cut_walk(couplings, cut, each).outputs, held)() for each in (bare, judged)
    )
    if repaired < without:
        return fitted
    context.notes.append(
        f"{left}that did not help on samples held out (squared error of the outputs, in their variances: "
        f"{without:.3g} -> {repaired:.3g})"
    )
    return bare
