"""Run a pass on a model as it is and in other axes of its residual streams, and keep what errs less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from nncompress.analysis.compensation.held_out import fit_and_decide, output_error
from nncompress.analysis.cost import cost
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes.base import Change, Context
from nncompress.passes.invariance.rotation.streams import Stream, find_streams
from nncompress.passes.invariance.rotation.tables import part_tables
from nncompress.passes.invariance.rotation.turn import Axes, rotate
from nncompress.passes.invariance.unchanged import outputs_of_few, prove_alike

Work = Callable[[Model, Context], list[Change]]


def with_rotation(name: str, axes: Axes, model: Model, context: Context, work: Work) -> list[Change]:
    """Change a model, in place, in those axes of its residual streams, its own or others, in which the
    outputs then err less; without data there is nothing to tell by, and they are turned.

    Args:
        name: of the pass.
        work: changes a model in place.
    """
    turned = model.copy()
    parted = part_tables(turned) if axes.to_cut else []
    streams, reasons = find_streams(turned, any_axes=axes.any_axes)
    skipped = [Change(_name(n), f"skipped: {why}", applied=False) for n, why in reasons.items()]
    if not streams:
        if not reasons:
            none = "no residual stream between norms with scales of their own was found"
            context.notes.append(f"{name}: --rotate turned nothing: {none}")
        return skipped + work(model, context)
    rotate(turned, streams, axes, context)
    before, after = outputs_of_few(model, context), outputs_of_few(turned, context)
    prove_alike(name, model, before, after, "turning the residual stream", "leave --rotate out")
    twice = "stored twice: the output layer gets a copy of its own"
    done = [Change(n, twice) for n in parted]
    done += [
        Change(_name(each.name), f"turned: its {each.width} channels are {axes.told}") for each in streams
    ]
    if context.data is None:
        done += work(turned, context)
        _become(model, turned)
        return skipped + done
    held = fit_and_decide(model, context.data, context.batch_size, context.limit)[1]
    original = model.copy()
    plain, other = (replace(context, notes=[], warnings=[]) for _ in range(2))
    changes = work(model, plain)
    try:
        instead = work(turned, other)
        against = _why_not(original, turned, streams) if axes.to_cut else ""
    except UsageError as error:  # a budget that a model with one more table cannot keep
        against = error.what
    if not against:
        errors = [output_error(original, each.outputs_of, held)() ** 0.5 for each in (model, turned)]
        against = f"outputs err by {errors[1]:.2%}, without by {errors[0]:.2%}, on every fourth sample"
        if errors[1] < errors[0]:
            _become(model, turned)
            context.notes += [*other.notes, f"{name}: with the residual stream turned {against}"]
            context.warnings += other.warnings
            return skipped + done + instead
    context.notes += plain.notes
    context.warnings += plain.warnings
    skipped += [replace(each, what=f"skipped: {each.what}; {against}", applied=False) for each in done]
    return skipped + changes


def turned_alike(model: Model, changes: list[Change], axes: Axes, context: Context) -> None:
    """Turn a model as the one that `changes` are of was."""
    done = {change.where for change in changes if change.applied and change.where.startswith(_name(""))}
    if done and axes.to_cut:
        part_tables(model)
    found, _ = find_streams(model, any_axes=axes.any_axes)
    rotate(model, [each for each in found if _name(each.name) in done], axes, context)


def _name(stream: str) -> str:
    return f"residual stream of {stream}"


def _why_not(original: Model, cut: Model, streams: Sequence[Stream]) -> str:
    """Why what was cut in other axes is not kept, however little it errs; "" where nothing is against it."""
    stored = cut.state_dict()
    held = (
        (stored[name].shape[dim], each.width) for each in streams for name, dim in each.dims if name in stored
    )
    if not any(size < width for size, width in held):
        return "none of its channels went"
    before, after = cost(original).parameters, cost(cut).parameters
    if after > before:
        return f"{after:,} parameters would be left of {before:,}"
    return ""


def _become(model: Model, other: Model) -> None:
    model.graph_module, model.inputs = other.graph_module, other.inputs
