"""Bias correction: rounding moves the mean of every channel, and the bias can take that back.

Nagel et al. 2019 §4.2, with means measured on data instead of derived: layer by layer in graph order, so that
a later layer is corrected for what is left of the errors before it (Nagel et al. 2021, §3.5 "empirical").
"""

from __future__ import annotations

from torch import Tensor

from nncompress.analysis.observe.calibration import largest_batch
from nncompress.analysis.observe.layerwise import Lockstep
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.layers.weights import Layer, layers


def correct_biases(rounded: Model, reference: Model, data: Dataset, limit: int | None) -> list[str]:
    """Give the layers of `rounded` that have a bias the channel means of `reference`; returns their names.

    Args:
        reference: the float model, with layers of the same names.
        limit: at most this many records; no more than fit in memory at once are used.
    """
    size = min(limit or 512, largest_batch(reference))
    batches = [batch.inputs for batch in data.batches(size, limit=size)]
    ours, theirs = Lockstep(rounded, batches), Lockstep(reference, batches)
    twins = {layer.name: layer for layer in layers(reference)}
    corrected = []
    for layer in layers(rounded):
        if not layer.weight.quantized or layer.bias is None or layer.bias.quantized:
            continue
        twin = twins[layer.name]
        ours.to(layer.node)
        theirs.to(twin.node)
        values = [(ours.value(layer.node, b), theirs.value(twin.node, b)) for b in range(len(batches))]
        missing = sum(_mean(layer, b - a) for a, b in values) / len(values)
        assert isinstance(missing, Tensor)
        if missing.shape != layer.bias.value().shape:
            continue
        layer.bias.assign(layer.bias.value() + missing)
        for value, _ in values:  # computed with the old bias
            value += _along_channels(layer, missing, value)
        corrected.append(layer.name)
    return corrected


def _channel_dim(layer: Layer, value: Tensor) -> int:
    """Behind the batch for a convolution, last for a matrix product."""
    return value.dim() - 1 if layer.roles.groups is None else value.dim() - (layer.weight.value().dim() - 1)


def _mean(layer: Layer, value: Tensor) -> Tensor:
    return value.movedim(_channel_dim(layer, value), 0).flatten(1).double().mean(1).float()


def _along_channels(layer: Layer, channels: Tensor, value: Tensor) -> Tensor:
    dim = _channel_dim(layer, value)
    return channels.reshape([-1 if d == dim else 1 for d in range(value.dim())])
