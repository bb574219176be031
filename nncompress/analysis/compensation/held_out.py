"""Samples to fit a repair to, others to decide on it, and what decides: the error of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nncompress.analysis.observe.outputs import Outputs
from nncompress.analysis.observe.statistics import ChannelStatistics
from nncompress.analysis.observe.walk import Inputs
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.graph.inputs import BATCH, count_samples, take_samples

HELD_OUT = 4  # every fourth sample decides, the others are fitted to


def fit_and_decide(
    model: Model, data: Dataset, batch_size: int, limit: int | None
) -> tuple[Sequence[Inputs], Sequence[Inputs]]:
    """The calibration samples to fit to, and those to decide on.

    A model with a fixed or a least batch decides on whole batches; with one batch only, it decides on what
    it fitted.
    """
    specs = model.inputs
    if BATCH not in model.dynamic or model.least_batch > 1:
        batches = data.input_batches(batch_size, limit)
        return (batches[::2], batches[1::2]) if len(batches) > 1 else (batches, batches)
    size = max(HELD_OUT, batch_size // HELD_OUT * HELD_OUT)  # so that every batch has some of both
    batches = data.input_batches(size, limit)

    def decides(inputs: Inputs) -> Tensor:
        return torch.arange(count_samples(specs, inputs)) % HELD_OUT == HELD_OUT - 1

    fit = batches.each(lambda inputs: take_samples(specs, inputs, ~decides(inputs)))
    held = batches.each(lambda inputs: take_samples(specs, inputs, decides(inputs)))
    if not count_samples(specs, held[-1]):
        held = held[:-1]  # the last batch is too small
    return fit, held or fit


def output_error(
    original: Model, outputs_of: Callable[..., Sequence[Tensor]], batches: Sequence[Inputs]
) -> Callable[[], float]:
    """Mean squared difference of the outputs of another model, as it is when called, in output variances.

    Infinities (masked scores) are no difference; of whole numbers it is the share that changed.

    Args:
        outputs_of: what it makes of inputs.
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
                new = outputs_of(*inputs)
                shares = [_share(a, b, v) for a, b, v in zip(new, old, variances)]
                samples = count_samples(original.inputs, inputs)
                total += sum(shares) * samples / max(len(shares), 1)
                count += samples
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
