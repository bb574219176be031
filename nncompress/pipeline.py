"""Run passes in order; verify and record after each.

A pass edits a copy. Only when the copy is well formed, runs, is finite and gives outputs of the same form
does it take the model's place, so a refused or failed pass leaves the model as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from typing import Any

from nncompress.analysis.cost import Cost, cost
from nncompress.analysis.distance.drift import BOUND, Reference, Samples, amount, beyond_bound
from nncompress.analysis.observe.batch_size import largest_batch
from nncompress.benchmarking.latency.model import speed_note
from nncompress.benchmarking.latency.target import clocked, floats_in
from nncompress.errors import UsageError
from nncompress.ir.edit.computed import store_computed_weights
from nncompress.ir.factors import products
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.places import layer_name
from nncompress.ir.graph.verify import Drift
from nncompress.ir.layers.recurrent import recurrent_layers
from nncompress.ir.layers.weights import layers
from nncompress.memory import give_back
from nncompress.options import flag_of
from nncompress.passes import Change, Context, Pass, Quantize
from nncompress.passes.base import NEAR
from nncompress.version import __version__

FEW = 8  # samples that set the ranges of a model that is only timed
LEFT = "skipped: even the least change would move the outputs too far"


@dataclass(frozen=True)
class Step:
    """What one pass did.

    Attributes:
        name, settings: the pass and its options that differ from the default.
        changes: per layer; those with `applied=False` say why a layer was skipped.
        before, after: cost of the model around the pass.
        drift: distance of the outputs from the original's on the same inputs, after this pass.
        samples: on which inputs that was measured.
        seconds: how long it took, verification included.
        notes: sentences for the user.
        warnings: sentences that say what may be wrong with the result.
    """

    name: str
    settings: dict[str, Any]
    changes: list[Change]
    before: Cost
    after: Cost
    drift: list[Drift]
    samples: Samples
    seconds: float
    notes: list[str]
    warnings: list[str]

    @property
    def changed(self) -> bool:
        return any(change.applied for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        return {
            "pass": self.name,
            "settings": self.settings,
            "changes": [asdict(change) for change in self.changes],
            "before": self.before.totals(),
            "after": self.after.totals(),
            "drift": [row.to_json() for row in self.drift],
            "samples": self.samples.to_json(),
            "seconds": round(self.seconds, 3),
            "notes": self.notes,
            "warnings": self.warnings,
        }


def run(
    model: Model,
    passes: Sequence[Pass],
    context: Context,
    *,
    original: Model | None = None,
    done: Callable[[Step, Model], None] | None = None,
    timing: bool = False,
) -> tuple[Model, list[Step]]:
    """Apply `passes` in order and return the resulting model with one `Step` per pass.

    The given model is not changed. Before the first pass starts, it is checked itself.

    Args:
        original: what drift is measured against; default the model as given.
        done: called after each pass.
        timing: after a pass with a budget in MACs or parameters, measure in the target what it is worth.

    Raises:
        NNCompressError: a pass refused, or its result did not check out.
    """
    held = None
    if context.data is not None:
        fitted, held = context.data.split()
        context = replace(context, data=fitted)
    samples = Samples.draw(model, context.data, held, context.seed)
    whose = "the model as loaded" if original is None or original is model else "the original"
    reference = Reference(original or model, samples, whose)
    before = reference.drift(model, "the model as loaded")
    steps: list[Step] = []
    for position, each in enumerate(passes):
        given = model
        ending, why = _ending(each, passes[position + 1 :], context)
        model, step = _run_one(given, each, ending, reference, amount(before))
        before = step.drift
        if why:
            step.notes.append(why)
        if timing and step.changed and each.has_budget:
            step.notes.append(speed_note(given, model, context.progress, context.target))
        steps.append(step)
        if done is not None:
            done(step, model)
    return model, steps


def chooses_by_clock(each: Pass) -> bool:
    """Latencies of layers or models decide what it does, in the precision that the pipeline ends in."""
    return any(getattr(each, name) for name in each.by_clock)


def _ending(each: Pass, later: Sequence[Pass], context: Context) -> tuple[Context, str]:
    """The context of a pass that chooses by the clock, with the precision in which the pipeline will end; and
    a sentence where that follows from a `quantize` behind it.

    Raises:
        UsageError: int8 needs ranges of activations, and there is no data.
    """
    if not chooses_by_clock(each):
        return context, ""
    quantizing = next((p for p in later if isinstance(p, Quantize) and p.mode in ("static", "dynamic")), None)
    ends = context.ends_in or ("int8" if quantizing is not None else None)
    if ends != "int8":
        return replace(context, ends_in=ends, finish=None), ""
    kept = Quantize() if quantizing is None else quantizing
    kept = Quantize(  # every layer: which of them gain is not timed anew for each width that is tried
        mode=kept.mode, keep=kept.keep, weight_bits=kept.weight_bits, every_layer=kept.mode == "static"
    )
    if kept.mode == "static" and context.data is None:
        raise UsageError(
            f"{each.name}: what is timed in int8 needs ranges of activations, and there is no data",
            remedy="add --data FILE.npz, or --for float32",
        )

    def finish(model: Model) -> Model:
        small = model.copy()
        limit = max(FEW, model.fixed_batch or 0)  # a whole batch, where it is fixed
        few = Context(data=context.data, seed=context.seed, limit=limit, target=context.target)
        kept.apply(small, few)
        small.refresh()
        return small

    why = "timed in int8, as quantize comes after it; --for float32 times it as floats"
    return replace(context, ends_in=ends, finish=finish), "" if context.ends_in else why


def check(model: Model, passes: Sequence[Pass], context: Context) -> None:
    """What every pass requires, of the model as it is now: no pass is run.

    Raises:
        NNCompressError: as `run`, where a pass would refuse this model. What passes before it make of the
            model is not known yet.
    """
    for each in passes:
        given = model.copy()
        if each.stored_weights:
            store_computed_weights(given)
        _check_patterns(each, given)
        _check_clock(each, context)
        each.requires(given, context)


def _check_clock(each: Pass, context: Context) -> None:
    """Refuse, before minutes of other work, a target whose latencies cannot be measured here, or a precision
    that it does not compute in.

    Raises:
        NNCompressError: one of these.
    """
    if chooses_by_clock(each):
        floats_in(clocked(context.target, context.ends_in), context.ends_in)


def _run_one(
    model: Model, each: Pass, context: Context, reference: Reference, drift_before: float
) -> tuple[Model, Step]:
    started = time.perf_counter()
    given = model
    most = largest_batch(model)
    if context.batch_size > most:
        context = replace(context, batch_size=most)
    before = cost(model)
    if each.strengths():
        each, start, model, changes = _near(model, each, context, reference)
    else:
        start, model, changes = _edited(model, each, context)
    if not each.recurrent:
        changes += [
            Change(layer.name, "skipped: a recurrent layer, whose op takes its matrices whole", applied=False)
            for layer in recurrent_layers(model)
        ]
    context.progress.step(f"verifying {each.name}", 0, 1)
    drift = reference.drift(model, each.name)
    after = cost(model)
    warnings = context.warnings
    if model is not given and amount(drift) > BOUND:
        inputs = reference.samples.batches[0]
        worst = each.contributions(start, model, changes, inputs, context)
        warnings.append(drift_warning(each, amount(drift), drift_before, worst, reference.samples))
    step = Step(
        each.name,
        each.settings(),
        changes,
        before,
        after,
        drift,
        reference.samples,
        time.perf_counter() - started,
        context.notes,
        warnings,
    )
    if step.changed:
        model.history.append(
            {
                "pass": each.name,
                "settings": each.settings(),
                "changed": sum(change.applied for change in changes),
                "before": before.totals(),
                "after": after.totals(),
                "version": __version__,
            }
        )
    context.progress.step(f"verifying {each.name}", 1, 1)
    return model, step


def _edited(model: Model, each: Pass, context: Context) -> tuple[Model, Model, list[Change]]:
    """The model that the pass was given (its weights stored), what became of it, and the changes."""
    context.notes, context.warnings = [], []
    edited = model.copy()
    computed = store_computed_weights(edited) if each.stored_weights else []
    start = edited.copy() if computed else model
    _check_patterns(each, start)
    _check_clock(each, context)
    each.requires(start, context)
    give_back()  # most of what a command holds at its peak was needed before and is free
    changes = each.apply(edited, context)
    give_back()
    if not any(change.applied for change in changes):
        return start, model, changes
    edited.refresh()
    each.ensures(edited, changes)
    if computed:
        context.notes.append(_stored(computed))
    return start, edited, changes


def _near(
    model: Model, each: Pass, context: Context, reference: Reference
) -> tuple[Pass, Model, Model, list[Change]]:
    """The strongest of `each.strengths()` whose outputs stay near those of the model that it was given.

    Returns: what was taken, and see `_edited`.
    """
    samples = reference.samples
    beside = Reference(model, samples, f"the model before {each.name}")
    beyond = []
    for tried in each.strengths():
        start, result, changes = _edited(model, tried, context)
        if result is model:
            break
        moved = amount(beside.drift(result, each.name))
        if moved <= NEAR:
            break
        beyond.append(f"{tried.settings()['relative']:g} would have moved the outputs by {moved:.0%}")
    else:
        result = model
        changes = [replace(c, applied=False, what=LEFT) if c.applied else c for c in changes]
        context.notes, context.warnings = [], []
    if beyond:
        context.notes.append(
            f"{each.name}: of the relative errors, {' and '.join(beyond)} {samples}, more than {NEAR:.0%}"
        )
    if result is model:
        context.notes.append(
            f"{each.name} was not told how much to change, and found nothing that the model does as well "
            f"without. For more: {each.more}"
        )
    return tried, start, result, changes


def drift_warning(each: Pass, now: float, before: float, worst: Mapping[str, float], samples: Samples) -> str:
    """How far the outputs have moved, which layers did it, and what would have kept them."""
    text = f"{each.name}: {beyond_bound(now, samples, before)}"
    if worst:
        effects = ", ".join(f"{name} moves them by {share:.0%}" for name, share in worst.items())
        text += f" By itself, {effects}."
    if each.protects and worst:
        flags = " ".join(f"{flag_of(each.protects)} {name}" for name in worst)
        text += f" To leave these as they are: {flags}."
    return f"{text} {each.afterwards}".rstrip()


def _stored(names: Sequence[str]) -> str:
    named = [layer_name(name) for name in names]
    several = ", …" if named[5:] else ""
    return f"weights that the graph computed are stored as what they were: {', '.join(named[:5])}{several}"


def _check_patterns(each: Pass, model: Model) -> None:
    """Refuse a pattern that names no layer: the user meant to protect one, and would not.

    Raises:
        UsageError: naming the pattern.
    """
    names = [layer.name for layer in layers(model)]
    recurrent = list(recurrent_layers(model))
    names += [name for layer in recurrent for name in layer.names]
    matrices = [each.name for layer in recurrent for each in layer.matrices]
    known = {*names, *matrices, *(layer_name(tensor) for tensor in model.state_dict())}
    for option in ("exclude", "keep"):
        if option == "keep":  # of `quantize`, which rounds what these multiply
            known |= {product.name for product in products(model)}
        for pattern in getattr(each, option, ()):
            if not any(fnmatch(name, pattern) for name in known):
                raise UsageError(
                    f"{each.name}: --{option} {pattern} names no layer",
                    expected=", ".join(names[:5]) + (", …" if names[5:] else ""),
                    remedy="nncompress inspect shows the layers",
                )
