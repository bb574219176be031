"""What `eval` prints with --json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nncompress.report.facts.content import (
    Axis,
    Bar,
    Bars,
    Cell,
    Column,
    Outcome,
    Part,
    Section,
    Table,
)
from nncompress.report.facts.limits import clipped
from nncompress.report.facts.metrics import metric_named
from nncompress.report.facts.shown import number, shown
from nncompress.report.facts.typed import rebuilt
from nncompress.results import CompareResult, Estimate, EvalResult, MetricDifference, PairedResult


@dataclass(frozen=True)
class Judged:
    """One model of an evaluation."""

    name: str
    runtime: str
    result: EvalResult | None = None
    paired: PairedResult | MetricDifference | None = None
    difference: CompareResult | None = None

    @property
    def metric(self) -> str | None:
        if isinstance(self.paired, MetricDifference):
            return self.paired.metric
        return "top1" if self.paired is not None else self.result.metric if self.result else None


@dataclass(frozen=True)
class Evaluation:
    """The whole document."""

    models: tuple[Judged, ...]


def section(document: dict[str, Any], source: str) -> Section:
    """The section of an evaluation.

    Raises:
        Rejected: it is no such document.
    """
    models = rebuilt(Evaluation, document).models
    measured = [model for model in models if model.result is not None]
    compared = [model for model in models if model.difference is not None]
    parts: list[Part] = []
    if measured:
        parts += [_accuracies(measured), *_differences(measured)]
    if compared:
        parts.append(_agreement(compared))
    told = [_told(model, models[0]) for model in models[1:]] or [_alone(model) for model in models]
    outcomes = [
        Outcome(
            clipped(model.name),
            clipped(models[0].name),
            metric=metric_named(model.metric).title,
            change=metric_named(model.metric).change(model.paired.difference),
            unit=metric_named(model.metric).of_change,
        )
        for model in models[1:]
        if model.paired is not None
    ]
    return Section(
        source, "eval", f"{'; '.join(told) or 'nothing was measured'}.", tuple(parts), tuple(outcomes)
    )


def _told(model: Judged, first: Judged) -> str:
    if model.paired is not None:
        metric = metric_named(model.metric)
        change = shown(metric.change(model.paired.difference), metric.of_change)
        return (
            f"{clipped(model.name)}: {change} of {metric.title} against {clipped(first.name)}, on "
            f"{model.paired.samples} samples"
        )
    if model.difference is not None and model.difference.outputs:
        worst = min(model.difference.outputs, key=lambda each: each.cosine)
        agree = "" if worst.agreement is None else f"answers agree in {worst.agreement:.1%}, "
        return f"{clipped(model.name)}: {agree}cosine {worst.cosine:.4f} to {clipped(first.name)}"
    return _alone(model)


def _alone(model: Judged) -> str:
    result = model.result
    if result is None or result.value is None:
        return f"{clipped(model.name)} was run"
    metric = metric_named(result.metric)
    return f"{clipped(model.name)}: {metric.title} {shown(_interval(result), metric.unit)}"


def _interval(result: EvalResult) -> Estimate | float | None:
    return result.value if result.interval is None else result.interval


def _accuracies(models: list[Judged]) -> Table:
    results = [model.result for model in models if model.result is not None]
    metric = metric_named(results[0].metric)
    against = [model for model in models if model.paired is not None]
    columns = [Column("model"), Column(metric.title, metric.unit)]
    top5 = any(result.top5 is not None for result in results) and results[0].metric != "top5"
    columns += [Column("top-5", "share")] * top5
    if against:
        columns += [Column("against the first", "number"), Column("only the first right", "count")]
        columns += [Column("only this one right", "count")]
    rows = []
    for model in models:
        assert model.result is not None
        cells: list[Cell] = [clipped(model.name), _interval(model.result)]
        cells += [model.result.top5] * top5
        if against:
            cells += _paired(model)
        rows.append(tuple(cells))
    note = f"{results[0].samples} samples of {clipped(results[0].data)}; 95 % intervals, differences paired."
    return Table("How good the models are", tuple(columns), tuple(rows), note)


def _paired(model: Judged) -> list[Cell]:
    if model.paired is None:
        return [None, None, None]
    metric = metric_named(model.metric)
    change = shown(metric.change(model.paired.difference), metric.of_change)
    if isinstance(model.paired, PairedResult):
        return [change, model.paired.only_original, model.paired.only_changed]
    return [change, None, None]


def _differences(models: list[Judged]) -> list[Part]:
    found = [model for model in models if model.paired is not None]
    if not found:
        return []
    metric = metric_named(found[0].metric)
    rows = [
        Bar(clipped(model.name), (metric.change(model.paired.difference),))
        for model in found
        if model.paired is not None and model.metric == found[0].metric
    ]
    title = f"Change of {metric.title} against {clipped(models[0].name)}"
    description = f"The difference of {metric.title} to the first model, sample by sample, with its interval."
    return [
        Bars(
            title,
            description,
            Axis("change, points" if metric.of_change == "points" else "change", metric.of_change),
            ("change",),
            tuple(rows),
            dots=True,
        )
    ]


def _agreement(models: list[Judged]) -> Table:
    rows = [
        (
            clipped(model.name),
            clipped(each.name),
            "" if each.agreement is None else number(each.agreement, "share"),
            each.cosine,
            each.sqnr_db,
            each.max_abs,
        )
        for model in models
        if model.difference is not None
        for each in model.difference.outputs
    ]
    columns = (
        Column("model"),
        Column("output"),
        Column("answers agree", "number"),
        Column("cosine", "number"),
        Column("SQNR, dB", "number"),
        Column("largest difference", "number"),
    )
    return Table("Outputs against the first model's", columns, tuple(rows))
