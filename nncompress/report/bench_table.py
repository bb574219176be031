"""A benchmark as tables that fit 80 columns, with a verdict per model in words."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from nncompress.analysis.metrics.registry import named_metric
from nncompress.report.bench_profile import profiles
from nncompress.report.line import line
from nncompress.report.tables import plain
from nncompress.report.units import count, duration, energy, size

if TYPE_CHECKING:
    from nncompress.results import BaselineResult, BenchResult, BenchSuite, CandidateResult, Phase


def suite(result: BenchSuite) -> RenderableType:
    """Every batch size, then what became of the models since the baseline."""
    parts: list[RenderableType] = []
    for position, run in enumerate(result.runs):
        if position:
            parts.append(Text())
        parts.append(benchmark(run, again=position > 0))
    if result.baseline is not None:
        parts += [Text(), baseline(result.baseline)]
    return Group(*parts)


def benchmark(result: BenchResult, *, again: bool = False) -> RenderableType:
    """Size, MACs, latency, speed-up with its interval and accuracy of every model; then what it means.

    Args:
        again: the models' sizes and verdicts were shown before, at another batch size.
    """
    candidates = result.candidates
    lines: list[RenderableType] = [
        _again(result) if again and result.phase is None else _first(result),
        line(how(result), style="dim"),
    ]
    lines += [Text(), _costs(result)]
    lines += [line(each, style="dim") for each in _legend(result)]
    if not again or result.phase is not None:
        lines += [
            line(verdict(candidates[0], candidate, previous)) for previous, candidate in pairwise(candidates)
        ]
    lines += [line(f"warning: {warning}", style="yellow") for warning in result.warnings]
    return Group(*lines, *profiles(candidates))


def baseline(result: BaselineResult) -> RenderableType:
    """Then and now, model by model."""
    table = plain(f"against {shortened(result.baseline)}", "batch", "time now / then", "compared", "")
    for change in result.changes:
        s = change.slowdown
        if change.regressed:
            word = "regression"
        elif s.high < 1:
            word = "faster"
        else:
            word = "ok"
        table.add_row(
            shortened(change.name, 20),
            str(change.batch),
            f"{s.value:.3f} [{s.low:.3f}, {s.high:.3f}]",
            "ratio" if change.measure.startswith("ratio") else "latency",
            word,
        )
    controls = sorted({c.measure.removeprefix("ratio to ") for c in result.changes if c.measure != "latency"})
    text = f"regression: the whole 95 % interval lies above {1 + result.tolerance:.2f}"
    if controls:
        text += f"; ratio: to {', '.join(controls)}, which cancels the machine's state"
    notes = [line(f"note: {note}", style="yellow") for note in result.notes]
    return Group(table, line(text, style="dim"), *notes)


def verdict(
    first: CandidateResult, candidate: CandidateResult, previous: CandidateResult | None = None
) -> str:
    """What a model was worth against the first, and whether it lost speed to the one before: a sentence."""
    assert candidate.speedup is not None
    s = candidate.speedup
    if s.low > 1:
        speed = f"{s.value:.2f}x faster"
    elif s.high < 1:
        speed = f"{1 / s.value:.2f}x slower"
    else:
        speed = "no measurable difference in speed"
    parts = [speed]
    if first.file_size and candidate.file_size:
        ratio = first.file_size / candidate.file_size
        same = 0.995 < ratio < 1.005
        parts.append(
            "same size" if same else f"{max(ratio, 1 / ratio):.2f}x {'smaller' if ratio > 1 else 'larger'}"
        )
    a, b = first.accuracy, candidate.accuracy
    if a is not None and b is not None and a.top1 is not None and b.top1 is not None:
        parts.append(f"{100 * (b.top1 - a.top1):+.2f} points of top-1")
    elif a is not None and b is not None and a.metric == b.metric and a.metric is not None:
        assert a.value is not None
        assert b.value is not None
        metric = named_metric(a.metric)
        change = metric.shown(b.value) - metric.shown(a.value)
        unit = f"points of {metric.title}" if metric.share else metric.title
        parts.append(f"{change:{'+.2f' if metric.share else '+.3g'}} {unit}")
    paid = s.low > 1 or bool(
        first.file_size and candidate.file_size and candidate.file_size < 0.99 * first.file_size
    )
    if previous is not None and previous.speedup is not None and s.high < previous.speedup.low:
        parts.append(f"slower than {previous.name}")
    return f"{candidate.name}: {', '.join(parts)}{'' if paid else ': did not pay'}"


def shortened(name: str, width: int = 24) -> str:
    """A long file name by its end, where the passes are: "…factorize.prune-nodes.pt2"."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _first(result: BenchResult) -> RenderableType:
    compares = len(result.candidates) > 1
    measures_accuracy = any(candidate.accuracy is not None for candidate in result.candidates)
    further = ["tokens/s"] if result.phase is not None else []
    further += [*(["speed-up"] if compares else []), *(["accuracy"] if measures_accuracy else [])]
    table = plain("model", "size", "MACs", "latency", *further)
    for candidate in result.candidates:
        table.add_row(
            shortened(candidate.name),
            _or_blank(candidate.file_size, size),
            _or_blank(candidate.macs, count),
            duration(candidate.latency.median),
            *([f"{rate:.4g}"] if (rate := result.tokens_per_second(candidate)) is not None else []),
            *([_speedup(candidate)] if compares else []),
            *([_accuracy(candidate)] if measures_accuracy else []),
        )
    return table


def _again(result: BenchResult) -> RenderableType:
    table = plain(f"batch {result.batch}", "latency", "per sample", "speed-up")
    for candidate in result.candidates:
        table.add_row(
            shortened(candidate.name),
            duration(candidate.latency.median),
            duration(result.per_sample(candidate)),
            _speedup(candidate),
        )
    return table


def _costs(result: BenchResult) -> RenderableType:
    """The slower calls, the beginning, and memory."""
    table = plain("", "p90", "p99", "load", "cold start", "memory")
    for candidate in result.candidates:
        table.add_row(
            shortened(candidate.name),
            duration(candidate.latency.p90),
            duration(candidate.latency.p99),
            _or_blank(candidate.load_s, duration),
            _or_blank(candidate.cold_start_s, duration),
            _or_blank(candidate.peak_memory, size),
        )
    return table


def how(result: BenchResult) -> str:
    """How it was measured, in a line."""
    rounds, sessions = sum(result.rounds_per_session), len(result.rounds_per_session)
    clock = {"cpu": "CPU"}.get(result.clock, result.clock)
    runtimes = ", ".join(dict.fromkeys(candidate.runtime for candidate in result.candidates))
    text = (
        f"{_phase(result.phase)}batch {result.batch}, threads {result.threads}, {runtimes}; medians of "
        f"{rounds} interleaved rounds in {sessions} session{'s' * (sessions != 1)}, {clock} time"
    )
    told = result.environment.get("gpu", {})
    gpu = [told.get("after", {}), *told.get("sessions", ())][-1]  # idle afterwards, its clock is another
    if "clock" in gpu:
        text += f"; GPU at {gpu['clock']} of {gpu['highest_clock']} MHz"
    elif gpu:
        text += "; the GPU's clocks are unknown"
    return f"{text}; speed-up with its 95 % interval" if len(result.candidates) > 1 else text


def _phase(phase: Phase | None) -> str:
    if phase is None:
        return ""
    if phase.name == "prompt":
        return f"prompt: {phase.tokens} tokens a call; "
    if phase.cached:
        return f"decode: one token a call, {phase.context} in the cache; "
    return f"decode: no cache, so all {phase.context} tokens are computed for each; "


def _legend(result: BenchResult) -> list[str]:
    lines = []
    if any(candidate.peak_memory is not None for candidate in result.candidates):
        lines.append(
            "cold start: open and run once in a new process; memory: its peak, beyond the runtime's own"
        )
    spent = [
        f"{each.name} {', '.join(f'{energy(joules)} {source}' for source, joules in each.energy.items())}"
        for each in result.candidates
        if each.energy is not None
    ]
    if spent:
        lines.append(f"energy per call ({result.energy_source}): {'; '.join(spent)}")
    elif not result.interrupted:
        lines.append(f"energy: {result.energy_source}")
    return lines


def _or_blank(value: float | None, form: object) -> str:
    return "" if value is None else form(value)  # type: ignore[operator]


def _speedup(candidate: CandidateResult) -> str:
    if candidate.speedup is None:
        return "1"
    return f"{candidate.speedup.value:.2f} [{candidate.speedup.low:.2f}, {candidate.speedup.high:.2f}]"


def _accuracy(candidate: CandidateResult) -> str:
    if candidate.accuracy is None:
        return ""
    a = candidate.accuracy
    if a.top1 is not None:
        return f"{100 * a.top1:.2f} %"
    if a.metric is not None and a.value is not None:
        metric = named_metric(a.metric)
        return f"{metric.title} {metric.text(a.value)}"
    return f"RMSE {a.rmse:.3g}" if a.rmse is not None else f"MSE {a.mse:.3g}"
