"""Bias correction: rounding moves the mean of every channel, and the bias can take that back.

Nagel et al. 2019 §4.2, with means measured on data instead of derived: layer by layer in graph order, so that
a later layer is corrected for what is left of the errors before it (Nagel et al. 2021, §3.5 "empirical").
"""

from __future__ import annotations

from nncompress.analysis.observe.batch_size import largest_batch
from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.statistics import ChannelStatistics
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers

MOST = 512  # samples; means of channels are known well enough


def correct_biases(rounded: Model, reference: Model, data: Dataset, limit: int | None) -> list[str]:
    """Give the layers of `rounded` that have a bias the channel means of `reference`; returns their names.

    Args:
        reference: the float model, with layers of the same names.
        limit: at most this many samples.
    """
    limit = min(limit or MOST, MOST)
    batches = data.input_batches(min(limit, largest_batch(reference)), limit)
    budget = ByteBudget()
    ours, theirs = LayerwiseRunner(rounded, batches, budget), LayerwiseRunner(reference, batches, budget)
    twins = {layer.name: layer for layer in layers(reference)}
    corrected = []
    for layer in layers(rounded):
        if not layer.weight.quantized or layer.bias is None or layer.bias.quantized:
            continue
        twin = twins[layer.name]
        missing = ChannelStatistics(-1)
        for now, (wanted,) in zip(ours.preview(layer.node), theirs.values(twin.node), strict=True):
            missing.add((wanted - now).movedim(layer.channel_dim, -1))
        if missing.mean.shape != layer.bias.value().shape:
            continue
        moved = missing.mean.float()
        # a class that a bias of -inf switches off has no mean
        layer.bias.assign(layer.bias.value() + moved.where(moved.isfinite(), 0))
        corrected.append(layer.name)
    return corrected
