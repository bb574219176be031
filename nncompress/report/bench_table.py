"""A benchmark as a table that fits 80 columns, with a verdict per model in words."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from nncompress.report.tables import plain
from nncompress.report.units import count, duration, size

if TYPE_CHECKING:
    from nncompress.results import ArmResult, BenchResult


def benchmark(result: BenchResult) -> RenderableType:
    """Size, MACs, latency, speed-up with its interval and accuracy of every model; then what it means."""
    arms = result.arms
    measures_accuracy = any(arm.accuracy is not None for arm in arms)
    table = plain(
        "model", "size", "MACs", "latency", "speed-up", *(["accuracy"] if measures_accuracy else [])
    )
    for arm in arms:
        table.add_row(
            shortened(arm.name),
            _or_blank(arm.file_size, size),
            _or_blank(arm.macs, count),
            duration(arm.latency.median),
            _speedup(arm),
            *([_accuracy(arm)] if measures_accuracy else []),
        )
    rounds = sum(result.rounds_per_session)
    footer = (
        f"batch {result.batch}, threads {result.threads}, {arms[0].runtime}; medians of {rounds} "
        f"interleaved rounds in {len(result.rounds_per_session)} sessions, {result.clock} time; "
        "speed-up with its 95 % interval"
    )
    lines: list[RenderableType] = [table, Text(footer, style="dim")]
    if any(arm.peak_memory for arm in arms):
        peaks = ", ".join(f"{arm.name} {size(arm.peak_memory)}" for arm in arms if arm.peak_memory)
        lines.append(Text(f"peak memory beyond the runtime's own: {peaks}", style="dim"))
    lines += [Text(verdict(arms[0], arm, previous)) for previous, arm in pairwise(arms)]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    return Group(*lines)


def verdict(first: ArmResult, arm: ArmResult, previous: ArmResult | None = None) -> str:
    """What a model was worth against the first, and whether it lost speed to the one before: a sentence."""
    assert arm.speedup is not None
    s = arm.speedup
    if s.low > 1:
        speed = f"{s.value:.2f}x faster"
    elif s.high < 1:
        speed = f"{1 / s.value:.2f}x slower"
    else:
        speed = "no measurable difference in speed"
    parts = [speed]
    if first.file_size and arm.file_size:
        ratio = first.file_size / arm.file_size
        same = 0.995 < ratio < 1.005
        parts.append(
            "same size" if same else f"{max(ratio, 1 / ratio):.2f}x {'smaller' if ratio > 1 else 'larger'}"
        )
    a, b = first.accuracy, arm.accuracy
    if a is not None and b is not None and a.top1 is not None and b.top1 is not None:
        parts.append(f"{100 * (b.top1 - a.top1):+.2f} points of top-1")
    paid = s.low > 1 or bool(first.file_size and arm.file_size and arm.file_size < 0.99 * first.file_size)
    if previous is not None and previous.speedup is not None and s.high < previous.speedup.low:
        parts.append(f"slower than {previous.name}")
    return f"{arm.name}: {', '.join(parts)}{'' if paid else ': did not pay'}"


def shortened(name: str, width: int = 24) -> str:
    """A long file name by its end, where the passes are: "…factorize.prune-nodes.pt2"."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _or_blank(value: int | None, form: object) -> str:
    return "" if value is None else form(value)  # type: ignore[operator]


def _speedup(arm: ArmResult) -> str:
    if arm.speedup is None:
        return "1"
    return f"{arm.speedup.value:.2f} [{arm.speedup.low:.2f}, {arm.speedup.high:.2f}]"


def _accuracy(arm: ArmResult) -> str:
    if arm.accuracy is None:
        return ""
    a = arm.accuracy
    if a.top1 is not None:
        return f"{100 * a.top1:.2f} %"
    return f"RMSE {a.rmse:.3g}" if a.rmse is not None else f"MSE {a.mse:.3g}"
