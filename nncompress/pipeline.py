"""Run passes in order; verify and record after each.

A pass edits a copy. Only when the copy is well formed, runs, is finite and gives outputs of the same form
does it take the model's place, so a refused or failed pass leaves the model as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

from torch import Tensor

from nncompress import __version__
from nncompress.analysis.cost import Cost, cost
from nncompress.errors import UsageError
from nncompress.ir.model import Model
from nncompress.ir.verify import Drift, drift, outputs_checked, same_structure
from nncompress.ir.weights import layer_name, layers, recurrent_layers
from nncompress.passes import Change, Context, Pass


@dataclass(frozen=True)
class Step:
    """What one pass did.

    Attributes:
        name, settings: the pass and its options that differ from the default.
        changes: per layer; those with `applied=False` say why a layer was left alone.
        before, after: cost of the model around the pass.
        drift: distance of the outputs from the original's on the same inputs, after this pass.
        seconds: how long it took, verification included.
        notes: sentences for the user.
    """

    name: str
    settings: dict[str, Any]
    changes: list[Change]
    before: Cost
    after: Cost
    drift: list[Drift]
    seconds: float
    notes: list[str]

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
            "seconds": round(self.seconds, 3),
            "notes": self.notes,
        }


def run(
    model: Model,
    passes: Sequence[Pass],
    context: Context,
    *,
    original: Model | None = None,
    done: Callable[[Step, Model], None] | None = None,
) -> tuple[Model, list[Step]]:
    """Apply `passes` in order and return the resulting model with one `Step` per pass.

    The given model is not changed. Before the first pass starts, it is checked itself.

    Args:
        original: what drift is measured against; default the model as given.
        done: called after each pass.

    Raises:
        NNCompressError: a pass refused, or its result did not check out.
    """
    inputs = _sample(model, context)
    outputs_checked(model, inputs, "the model as loaded")
    reference = outputs_checked(original or model, inputs, "the original")
    steps: list[Step] = []
    for each in passes:
        model, step = _run_one(model, each, context, inputs, reference)
        steps.append(step)
        if done is not None:
            done(step, model)
    return model, steps


def _run_one(
    model: Model, each: Pass, context: Context, inputs: tuple[Tensor, ...], reference: Sequence[Tensor]
) -> tuple[Model, Step]:
    started = time.perf_counter()
    _check_patterns(each, model)
    each.requires(model, context)
    before = cost(model)
    context.notes = []
    edited = model.copy()
    changes = each.apply(edited, context)
    if any(change.applied for change in changes):
        edited.refresh()
        each.ensures(edited, changes)
        model = edited
    if not each.recurrent:
        changes += [
            Change(name, "left: a recurrent layer", applied=False) for name in recurrent_layers(model)
        ]
    context.progress.step(f"verifying {each.name}", 0, 1)
    outputs = outputs_checked(model, inputs, each.name)
    same_structure(outputs, reference, each.name)
    after = cost(model)
    step = Step(
        each.name,
        each.settings(),
        changes,
        before,
        after,
        drift(model, outputs, reference),
        time.perf_counter() - started,
        context.notes,
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


def _check_patterns(each: Pass, model: Model) -> None:
    """Refuse a pattern that names no layer: the user meant to protect one, and would not.

    Raises:
        UsageError: naming the pattern.
    """
    names = [layer.name for layer in layers(model)]
    known = {*names, *(layer_name(tensor) for tensor in model.state_dict())}
    for option in ("exclude", "keep"):
        for pattern in getattr(each, option, ()):
            if not any(fnmatch(name, pattern) for name in known):
                raise UsageError(
                    f"{each.name}: --{option} {pattern} names no layer",
                    expected=", ".join(names[:5]) + (", …" if names[5:] else ""),
                    remedy="nncompress inspect shows the layers",
                )


def _sample(model: Model, context: Context) -> tuple[Tensor, ...]:
    """Inputs to compare outputs on: records of the data where there is any, else random ones."""
    if context.data is not None:
        for batch in context.data.batches(16, limit=16):
            return batch.inputs
    return model.example_inputs(batch=4, seed=context.seed)
