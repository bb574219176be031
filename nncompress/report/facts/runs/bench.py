"""What `bench` prints with --json, or writes with -o."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

from nncompress.report.bench_table import how, verdict
from nncompress.report.facts.content import (
    Axis,
    Bar,
    Bars,
    Cell,
    Column,
    Number,
    Outcome,
    Part,
    Plot,
    Point,
    Section,
    Series,
    Table,
)
from nncompress.report.facts.limits import clipped
from nncompress.report.facts.metrics import metric_named
from nncompress.report.facts.runs.environment import environment
from nncompress.report.facts.shown import number, shown
from nncompress.report.facts.typed import rebuilt
from nncompress.results import (
    BaselineResult,
    BenchResult,
    BenchSuite,
    CandidateResult,
    EvalResult,
    OperatorTime,
)

OPERATORS = 12  # of a profile


def section(document: dict[str, Any], source: str) -> Section:
    """The section of a benchmark.

    Raises:
        Rejected: it is no such document.
    """
    suite = rebuilt(BenchSuite, document)
    parts: list[Part] = []
    warnings: list[str] = []
    for run in suite.runs:
        if len(suite.runs) > 1:
            warnings += [f"{_where(run)}: {clipped(text)}" for text in run.warnings]
        else:
            warnings += map(clipped, run.warnings)
        parts += [_table(run), *_speedups(run)]
    if suite.interrupted:
        warnings.append("It was ended early: what was measured until then is shown.")
    if not suite.runs or not suite.runs[0].candidates:
        return Section(source, "bench", "Nothing was measured.")
    first = suite.runs[0]
    parts += [*_pareto(first), *(part for candidate in first.candidates for part in _profile(candidate))]
    if suite.baseline is not None:
        parts.append(_baseline(suite.baseline))
        warnings += map(clipped, suite.baseline.notes)
    verdicts = [
        verdict(first.candidates[0], candidate, previous)
        for previous, candidate in pairwise(first.candidates)
        if candidate.speedup
    ]
    return Section(
        source,
        "bench",
        f"{'; '.join(verdicts) or f'{first.candidates[0].name} was measured'}.",
        tuple(parts),
        tuple(_outcome(first.candidates[0], candidate) for candidate in first.candidates[1:]),
        tuple(warnings),
        environment(first.environment),
    )


def _table(run: BenchResult) -> Table:
    judged = any(candidate.accuracy for candidate in run.candidates)
    title = next(
        (metric_named(candidate.accuracy.metric).title for candidate in run.candidates if candidate.accuracy),
        "accuracy",
    )
    columns = (
        Column("model"),
        Column("file", "bytes"),
        Column("MACs", "count"),
        Column("latency", "seconds"),
        *((Column("tokens/s", "number"),) if run.phase else ()),
        Column("speed-up", "times"),
        *((Column(title, "number"),) if judged else ()),
        Column("p90", "seconds"),
        Column("p99", "seconds"),
        Column("load", "seconds"),
        Column("cold start", "seconds"),
        Column("memory", "bytes"),
    )
    rows = [
        (
            clipped(candidate.name),
            candidate.file_size,
            candidate.macs,
            candidate.latency.median,
            *((run.tokens_per_second(candidate),) if run.phase else ()),
            candidate.speedup,
            *((_accuracy(candidate.accuracy),) if judged else ()),
            candidate.latency.p90,
            candidate.latency.p99,
            candidate.load_s,
            candidate.cold_start_s,
            candidate.peak_memory,
        )
        for candidate in run.candidates
    ]
    return Table(f"Measured at {_where(run)}", columns, tuple(rows), f"{_sentence(how(run))}.")


def _where(run: BenchResult) -> str:
    """Which of several measurements it is."""
    phase = f", {clipped(run.phase.name)} of {run.phase.tokens}" if run.phase else ""
    return f"batch {run.batch}{phase}"


def _accuracy(result: EvalResult | None) -> Cell:
    value = None if result is None else _value(result)
    if result is None or value is None:
        return None
    return number(value, metric_named(result.metric).unit)


def _value(result: EvalResult) -> float | None:
    return next((v for v in (result.value, result.top1, result.rmse, result.mse) if v is not None), None)


def _speedups(run: BenchResult) -> list[Part]:
    rows = [
        Bar(clipped(candidate.name), (candidate.speedup,))
        for candidate in run.candidates
        if candidate.speedup is not None
    ]
    if not rows:
        return []
    description = f"How many times as fast as {run.candidates[0].name} each model is, with the 95 % interval."
    title = f"Speed-up over {clipped(run.candidates[0].name)} at {_where(run)}"
    return [Bars(title, description, Axis("times as fast", "times"), ("speed-up",), tuple(rows))]


def _pareto(run: BenchResult) -> list[Part]:
    """How good each model is against how long it takes."""
    judged = [
        (candidate, candidate.accuracy)
        for candidate in run.candidates
        if candidate.accuracy and _value(candidate.accuracy) is not None
    ]
    if len(judged) < 2:
        return []
    metric = metric_named(judged[0][1].metric)
    points = []
    for candidate, result in judged:
        value = _value(result)
        assert value is not None
        told = f"{candidate.name}: {number(value, metric.unit)}"
        told += f", {shown(run.per_sample(candidate), 'seconds')} a sample"
        if candidate.file_size:
            told += f", {shown(candidate.file_size, 'bytes')}"
        points.append(
            Point(run.per_sample(candidate), value, clipped(told), chosen=candidate is run.candidates[-1])
        )
    return [
        Plot(
            f"{metric.title} against latency",
            "Each model by its latency per sample and by how good it is on the data.",
            Axis("latency per sample", "seconds"),
            Axis(metric.title, metric.unit),
            (Series("models", tuple(points)),),
        )
    ]


def _profile(candidate: CandidateResult) -> list[Part]:
    if not candidate.profile:
        return []
    kinds: dict[tuple[str, str], list[OperatorTime]] = defaultdict(list)
    for row in candidate.profile:
        kinds[row.op, row.node].append(row)
    ordered = sorted(kinds.items(), key=lambda item: -sum(row.seconds for row in item[1]))
    rows = []
    for (op, node), found in ordered[:OPERATORS]:
        seconds = sum(row.seconds for row in found)
        rows.append(Bar(clipped(f"{node} ({op})" if node else op), (seconds,)))
    return [
        Bars(
            f"Where the time of {clipped(candidate.name)} goes",
            f"The operators of {candidate.name} in {candidate.runtime} that take longest; their kind says in "
            "which precision they run. Profiling makes a run itself slower: the shares hold.",
            Axis("time", "seconds"),
            ("time per run",),
            tuple(rows),
            left_out=max(0, len(ordered) - OPERATORS),
        )
    ]


def _baseline(result: BaselineResult) -> Table:
    rows = tuple(
        (
            clipped(change.name),
            change.batch,
            change.slowdown,
            clipped(change.measure),
            "regression" if change.regressed else "faster" if change.slowdown.high < 1 else "ok",
        )
        for change in result.changes
    )
    columns = (
        Column("model"),
        Column("batch", "count"),
        Column("time now / then", "times"),
        Column("compared"),
        Column("verdict"),
    )
    note = f"Regression: the whole 95 % interval lies above {1 + result.tolerance:.2f}."
    return Table(f"Against {clipped(result.baseline)}", columns, rows, note)


def _outcome(first: CandidateResult, candidate: CandidateResult) -> Outcome:
    metric = metric_named(candidate.accuracy.metric if candidate.accuracy else None)
    change: Number = None
    if candidate.paired is not None:
        change = metric.change(candidate.paired.difference)
    elif first.accuracy and candidate.accuracy and first.accuracy.metric == candidate.accuracy.metric:
        one, other = _value(first.accuracy), _value(candidate.accuracy)
        change = None if one is None or other is None else metric.change(other - one)
    return Outcome(
        clipped(candidate.name),
        clipped(first.name),
        speedup=candidate.speedup,
        smaller=_over(first.file_size, candidate.file_size),
        macs=_over(candidate.macs, first.macs),
        parameters=_over(candidate.parameters, first.parameters),
        metric="" if change is None else metric.title,
        change=change,
        unit=metric.of_change,
    )


def _over(one: int | None, other: int | None) -> float | None:
    return one / other if one is not None and other else None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
