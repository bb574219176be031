"""Weights that are of low rank become factors, which changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nncompress.analysis.lowrank.ranks import Candidate
from nncompress.analysis.weight_targets import find_targets
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.passes.cut import check_same
from nncompress.passes.factors.forms.choice import forms_of
from nncompress.passes.factors.replace import replace_layer

# Of outputs, relatively: the product of two weights in float32 is the third one to within their rounding.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Split:
    """What became of one layer: its factors' form and ranks, the ranks that it has in full, and the cost."""

    form: str
    ranks: tuple[int, ...]
    full: tuple[int, ...]
    cost: int


def split(model: Model, factors: Mapping[str, Candidate], unit: str) -> dict[str, Split]:
    """Put factors in the place of weights that have these ranks, where that is cheaper; edits `model`.

    Args:
        factors: layer -> its form and ranks; a layer that has lost nodes may have fewer.
        unit: what is cheaper: "macs" or "parameters".

    Returns: by layer, what was put there.

    Raises:
        VerificationError: the model computes something else with the factors.
    """
    before, shapes = model.copy(), Shapes(model)
    found = {}
    for target in find_targets(model, shapes)[0]:
        candidate = factors.get(target.name)
        if candidate is None:
            continue
        form = next(f for f in forms_of(target, shapes, candidate.form) if f.name == candidate.form)
        ranks = tuple(min(rank, full) for rank, full in zip(candidate.ranks, form.full_ranks))
        cost = form.cost(ranks, unit)
        if cost < (target.macs if unit == "macs" else target.weight.value().numel()):
            found[target.name] = Split(form.name, ranks, form.full_ranks, cost)
            replace_layer(model, form, [weight.clone() for weight in form.weights(ranks)])
    model.refresh()
    if found:
        check_same(before, model, "splitting weights into their factors", ROUNDING)
    return found
