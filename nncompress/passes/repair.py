"""After the factors are in: closed-form repairs on data, each kept only if it helps on held-out samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nncompress.analysis.compensation.batch_norms import batch_norms, reestimate
from nncompress.analysis.compensation.held_out import fit_and_decide, output_error
from nncompress.analysis.compensation.refit import refit
from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.weight_targets import Target
from nncompress.ir import Model
from nncompress.ir.graph.places import layer_name
from nncompress.passes.base import Change, Context


def repair(
    original: Model, model: Model, stages: Mapping[Target, Sequence[str]], context: Context
) -> list[Change]:
    """Refit the last stages, then blend in new batch-norm statistics; `model` is edited in place.

    Args:
        stages: per target the names of the weights that replaced it.
    """
    assert context.data is not None
    fit, held = fit_and_decide(model, context.data, context.batch_size, context.limit)
    error = output_error(original, model.outputs_of, held)
    pairs = [(t.name, layer_name(names[-1])) for t, names in stages.items() if len(t.layers) == 1]
    changes = []
    before = error()
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = refit(original, model, pairs, fit, context.seed, context.progress)
    after = error()
    if after < before:
        context.warn(too_few("factorize", rows))
        numbers = {"error_before": before, "error_after": after}
        changes.append(Change("factors", "fitted to the inputs they receive", numbers))
    else:
        for name, tensor in model.state_dict().items():
            tensor.copy_(saved[name])
        what = "skipped: fitting them to the inputs they receive did not help on held-out data"
        changes.append(Change("factors", what, {"error_before": before, "error_after": after}, applied=False))
    if not batch_norms(model):
        return changes
    share, before, after = reestimate(model, fit, error, min(before, after))
    numbers = {"error_before": before, "error_after": after, "share": share}
    if share:
        changes.append(Change("batch norms", f"{share:.0%} new statistics", numbers))
    elif after != 0:
        what = "skipped: new statistics did not help on held-out data"
        changes.append(Change("batch norms", what, numbers, applied=False))
    return changes
