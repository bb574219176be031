"""After the factors are in: closed-form repairs on data, each kept only if it helps on held-out records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.observe.outputs import Outputs
from nncompress.analysis.observe.statistics import ChannelStatistics, Inputs
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.graph.inputs import BATCH, count_records, take_records
from nncompress.ir.layers.weights import layer_name
from nncompress.passes.base import Change, Context
from nncompress.passes.factorize.batch_norm import batch_norms, reestimate
from nncompress.passes.factorize.refit import refit
from nncompress.passes.factorize.targets import Target

HELD_OUT = 4  # every fourth record decides, the others are fitted to


def repair(
    original: Model, model: Model, stages: Mapping[Target, Sequence[str]], context: Context
) -> list[Change]:
    """Refit the last stages, then blend in new batch-norm statistics; `model` is edited in place.

    Args:
        stages: per target the names of the weights that replaced it.
    """
    assert context.data is not None
    fit, held = split(model, context.data, context)
    error = output_error(original, model, held)
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
        what = "left: fitting them to the inputs they receive did not help on held-out data"
        changes.append(Change("factors", what, {"error_before": before, "error_after": after}, applied=False))
    if not batch_norms(model):
        return changes
    share, before, after = reestimate(model, fit, error)
    numbers = {"error_before": before, "error_after": after, "share": share}
    if share:
        changes.append(Change("batch norms", f"{share:.0%} new statistics", numbers))
    elif after != 0:
        what = "left: new statistics did not help on held-out data"
        changes.append(Change("batch norms", what, numbers, applied=False))
    return changes


def split(model: Model, data: Dataset, context: Context) -> tuple[Sequence[Inputs], Sequence[Inputs]]:
    """The calibration records to fit to, and those to decide on.

    A model with a fixed batch decides on whole batches; with one batch only, it decides on what it fitted.
    """
    specs = model.inputs
    if BATCH not in model.dynamic:
        batches = data.input_batches(context.batch_size, context.limit)
        return (batches[::2], batches[1::2]) if len(batches) > 1 else (batches, batches)
    size = max(HELD_OUT, context.batch_size // HELD_OUT * HELD_OUT)  # so that every batch has some of both
    batches = data.input_batches(size, context.limit)

    def decides(inputs: Inputs) -> Tensor:
        return torch.arange(count_records(specs, inputs)) % HELD_OUT == HELD_OUT - 1

    fit = batches.each(lambda inputs: take_records(specs, inputs, ~decides(inputs)))
    held = batches.each(lambda inputs: take_records(specs, inputs, decides(inputs)))
    if not count_records(specs, held[-1]):
        held = held[:-1]  # the last batch is too small
    return fit, held or fit


def output_error(original: Model, model: Model, batches: Sequence[Inputs]) -> Callable[[], float]:
    """Mean squared difference of the outputs of `model`, as it is when called, in output variances.

    Infinities (masked scores) are no difference; of whole numbers it is the share that changed.
    """
    wanted = Outputs(original, batches)
    seen = [ChannelStatistics(0) for _ in original.outputs]
    for _, outputs in wanted:
        for statistics, y in zip(seen, outputs):
            statistics.add(y[y.isfinite()].reshape(1, -1))
    variances = [_variance(s) for s in seen]

    def error() -> float:
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, old in wanted:
                new = model.outputs_of(*inputs)
                shares = [_share(a, b, v) for a, b, v in zip(new, old, variances)]
                records = count_records(model.inputs, inputs)
                total += sum(shares) * records / max(len(shares), 1)
                count += records
        return total / count

    return error


def _variance(seen: ChannelStatistics) -> float:
    """Of a sample's population, never zero."""
    return max(float(seen.variance) * seen.count / (seen.count - 1), 1e-30) if seen.count > 1 else 1e-30


def _share(new: Tensor, old: Tensor, variance: float) -> float:
    """Of one output, how much differs: 0 for none."""
    if not old.numel():
        return 0.0
    if not old.is_floating_point():
        return float((new != old).double().mean())
    finite = old.isfinite()
    difference = (new[finite].double() - old[finite].double()).square().mean() if finite.any() else 0.0
    return float(difference) / variance
