"""What each weight could become: its forms, and every rank's cost and error."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.lowrank.randomized import Wanted
from nncompress.analysis.weight_targets import Target
from nncompress.ir.graph.shapes import Shapes
from nncompress.passes.factorize.calibrate import CalibrationStatistics
from nncompress.passes.factorize.choose import Option
from nncompress.passes.factorize.latency import LatencyOracle
from nncompress.passes.factorize.rule import RankRule
from nncompress.passes.factors.forms.choice import forms_of


def option_of(
    target: Target,
    shapes: Shapes,
    rule: RankRule,
    *,
    form: str,
    round_to: int,
    statistics: CalibrationStatistics | None,
    minimized: str,
    oracle: LatencyOracle | None,
) -> Option:
    """A target's forms with every candidate's rank, cost and error.

    Args:
        form: its name, or "auto" for all that fit.
        statistics: how errors are measured; None: of the weight.
        minimized: whose error: "weight", "layer" or "model".
        oracle: measures latency where that decides; None: it does not.
    """
    weight = target.weight.value()
    said = statistics.of(target) if statistics is not None else None
    metrics = partial(statistics.metrics, target) if statistics is not None and said is not None else None
    matrices = target.matrices(weight)
    known_metrics = said.metrics if said is not None else [Metric()] * len(matrices)
    total = sum(m.energy(w) for m, w in zip(known_metrics, matrices))
    elements = weight.numel() if minimized == "weight" else matrices.shape[0] * matrices.shape[1]
    multiple = round_to if oracle is None else oracle.multiple(target, round_to)
    wanted = Wanted(rule.rank, rule.limit(total, elements, minimized), multiple)
    forms = {f.name: f for f in forms_of(target, shapes, form, metrics, wanted)}
    if statistics is not None and not statistics.in_memory:  # what is made of them would not fit either
        for each in forms.values():
            each.keeps_parts = False
    unit = rule.unit(target)
    dense = target.macs if unit == "macs" else weight.numel()
    if oracle is None:
        candidates = [c for f in forms.values() for c in f.candidates(unit, round_to)]
        for metric in known_metrics:
            metric.forget()
        return Option(target, forms, candidates, unit, dense, total, elements)
    timings = oracle.timings(target, forms, round_to, rule.rank)
    known = {(c.form, c.ranks): c for f in forms.values() for c in f.candidates(unit)}
    for metric in known_metrics:
        metric.forget()
    timings = {place: timing for place, timing in timings.items() if place in known}
    if unit == "latency":
        dense = round(next((t.dense for t in timings.values()), 0.0) * 1e9)
        known |= {p: replace(known[p], cost=round(t.factored * 1e9)) for p, t in timings.items()}
    faster, slower = ([known[p] for p, t in timings.items() if t.pays == pays] for pays in (True, False))
    return Option(target, forms, faster, unit, dense, total, elements, timings, slower, multiple=multiple)
