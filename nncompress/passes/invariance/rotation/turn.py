"""Turn the residual streams of a network, in place: the function stays, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.ir import Model
from nncompress.passes.base import Context
from nncompress.passes.invariance.rotation.centred import centre
from nncompress.passes.invariance.rotation.orthogonal import orthogonal
from nncompress.passes.invariance.rotation.principal import principal_axes
from nncompress.passes.invariance.rotation.streams import Norm, Stream, find_streams


@dataclass(frozen=True)
class Axes:
    """Other axes for residual streams.

    Attributes:
        told: what they are.
        any_axes: the mean of the channels need not stay.
        to_cut: some of them will go: a table that is the output layer, too, is stored twice for that, and
            where none went, the stream stays as it was.
        of: Q of each stream, orthogonal, float64 [width, width].
    """

    told: str
    any_axes: bool
    to_cut: bool
    of: Callable[[Model, Sequence[Stream], Context], list[Tensor]]


def _spread(model: Model, streams: Sequence[Stream], context: Context) -> list[Tensor]:
    return [orthogonal(stream.width, context.seed + number) for number, stream in enumerate(streams)]


def _principal(model: Model, streams: Sequence[Stream], context: Context) -> list[Tensor]:
    assert context.data is not None
    batches = context.data.input_batches(context.batch_size, context.limit)
    total = context.data.planned_samples(context.limit)
    return principal_axes(model, streams, batches, total, context.progress)


SPREAD = Axes("seen in other axes", False, False, _spread)
PRINCIPAL = Axes("seen in its principal axes", True, True, _principal)


def rotate(model: Model, streams: Sequence[Stream], axes: Axes, context: Context) -> None:
    """See these streams of the model in these axes."""
    for stream in streams:
        for norm in stream.norms:
            _give_away(model, norm)
        centre(model, stream)
    if any(stream.centred for stream in streams):
        names = [stream.name for stream in streams]
        model.refresh()
        streams = [each for each in find_streams(model, any_axes=True)[0] if each.name in names]
    for stream, matrix in zip(streams, axes.of(model, streams, context), strict=True):
        turn(model, stream, matrix)


def turn(model: Model, stream: Stream, matrix: Tensor) -> None:
    """Give the stream's values x as x Q; its norms scale nothing.

    Args:
        matrix: Q, orthogonal, float64 [width, width].
    """
    for name, dim in stream.dims:
        tensor = model.tensor(name).detach()
        tensor.copy_((tensor.double().movedim(dim, -1) @ matrix).movedim(-1, dim).to(tensor.dtype))


def _give_away(model: Model, norm: Norm) -> None:
    """The products behind a norm take its scales."""
    scales = model.tensor(norm.source.vectors[0]).detach().double()
    for reader in norm.readers:
        weight, columns = reader.layer.weight.value().double(), scales[reader.channels]
        reader.layer.weight.assign(weight * (columns if reader.layer.roles.inputs % 2 else columns[:, None]))
    if len(norm.source.vectors) > 1:
        norm.source.divide(scales)
    with torch.no_grad():
        model.tensor(norm.source.vectors[0]).fill_(1)
