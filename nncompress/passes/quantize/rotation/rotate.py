"""Turn the residual streams of a network: the function stays, outliers are spread over all channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nncompress.analysis.compensation.held_out import fit_and_decide, output_error
from nncompress.ir import Model
from nncompress.passes.base import Change, Context
from nncompress.passes.quantize.equalization.unchanged import outputs_of_few, prove_alike
from nncompress.passes.quantize.rotation.orthogonal import orthogonal
from nncompress.passes.quantize.rotation.streams import Norm, Stream, find_streams

_TURNED = "turned: its {} channels are seen in other axes"


def with_rotation(
    model: Model, context: Context, rounded: Callable[[Model, Context], list[Change]]
) -> list[Change]:
    """Round a model, in place, in those axes of its residual streams, its own or turned ones, in which the
    outputs then err less; without data there is nothing to tell by, and they are turned.

    Args:
        rounded: rounds a model in place.
    """
    turned = model.copy()
    streams, reasons = find_streams(turned)
    skipped = [Change(_name(n), f"skipped: {why}", applied=False) for n, why in reasons.items()]
    if not streams:
        if not reasons:
            none = "no residual stream between norms with scales of their own was found"
            context.notes.append(f"quantize: --rotate turned nothing: {none}")
        return skipped + rounded(model, context)
    rotate(turned, streams, context.seed)
    before, after = outputs_of_few(model, context), outputs_of_few(turned, context)
    prove_alike(model, before, after, "turning the residual stream", "leave --rotate out")
    done = [Change(_name(each.name), _TURNED.format(each.width)) for each in streams]
    if context.data is None:
        done += rounded(turned, context)
        _become(model, turned)
        return skipped + done
    held = fit_and_decide(model, context.data, context.batch_size, context.limit)[1]
    original = model.copy()
    tries = [(each, replace(context, notes=[], warnings=[])) for each in (model, turned)]
    both = [rounded(each, own) for each, own in tries]
    errors = [output_error(original, each, held)() ** 0.5 for each, _ in tries]
    better = errors[1] < errors[0]
    context.notes += tries[better][1].notes
    context.warnings += tries[better][1].warnings
    figures = f"outputs err by {errors[1]:.2%}, without by {errors[0]:.2%}, on every fourth sample"
    if better:
        _become(model, turned)
        context.notes.append(f"quantize: with the residual stream turned {figures}")
        return skipped + done + both[1]
    skipped += [replace(each, what=f"skipped: turned, {figures}", applied=False) for each in done]
    return skipped + both[0]


def turned_as(model: Model, changes: list[Change], seed: int) -> None:
    """Turn a model as the one that `changes` are of was."""
    done = {change.where for change in changes if change.applied}
    streams = [each for each in find_streams(model)[0] if _name(each.name) in done]
    rotate(model, streams, seed)


def _name(stream: str) -> str:
    return f"residual stream of {stream}"


def _become(model: Model, other: Model) -> None:
    model.graph_module, model.inputs = other.graph_module, other.inputs


def rotate(model: Model, streams: list[Stream], seed: int) -> None:
    """See each stream of this model in other axes; it computes the same up to rounding."""
    for number, stream in enumerate(streams):
        turn(model, stream, orthogonal(stream.width, seed + number))


def turn(model: Model, stream: Stream, matrix: Tensor) -> None:
    """Give the stream's values x as x Q.

    Args:
        matrix: Q, orthogonal, float64 [width, width], with Q 1 = 1.
    """
    for norm in stream.norms:
        _give_away(model, norm)
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
