"""What `sensitivity` and `optimize` found, as tables that fit 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from nncompress.report.line import line
from nncompress.report.tables import Name, plain
from nncompress.report.units import size

if TYPE_CHECKING:
    from nncompress.analysis.metrics.base import Metric
    from nncompress.search.promise import Promise
    from nncompress.search.sensitivity import Effect, Sensitivity

DONE = {
    "prune-nodes": "{:.0%} of its nodes removed",
    "factorize": "{:.0%} of its MACs kept",
    "quantize": "{:.0f} bits",
}


def sensitivity(result: Sensitivity, *, every: bool) -> RenderableType:
    """A table per method: the layers that cost most first.

    Args:
        every: all strengths; else of each layer the middle one.
    """
    lines: list[RenderableType] = []
    for method in dict.fromkeys(effect.method for effect in result.effects):
        mine = [effect for effect in result.effects if effect.method == method]
        strengths = sorted({effect.strength for effect in mine})
        shown = mine if every else [e for e in mine if e.strength == strengths[len(strengths) // 2]]
        table = plain("layer", "what", "error", "MACs", "bytes", right=2)
        for effect in sorted(shown, key=lambda e: (e.error is None, -(e.error or 0.0), e.where)):
            what = DONE[method].format(effect.strength)
            if effect.error is None:
                table.add_row(Name(effect.where), effect.said, "", "", "", style="dim")
                continue
            numbers = (f"{effect.error:.2%}", _saved(effect.macs), _saved(effect.bytes))
            table.add_row(Name(effect.where), what, *numbers)
        lines += [line(method, style="bold"), table, line(worst(shown)), Text()]
    known = f", {result.known} known from before" if result.known else ""
    lines.append(
        line(
            f"error: distance of the outputs (relative L2 norm), {result.samples}; MACs, bytes: of the whole "
            f"model's; {result.measured} measured{known}"
        )
    )
    return Group(*lines)


def _saved(saved: float) -> str:
    return f"{-saved:+.1%}" if saved else "0"


def worst(effects: list[Effect]) -> str:
    """Which layer hurts most, how much more than the middle one, and what leaves it alone."""
    found = sorted((e for e in effects if e.error is not None), key=lambda e: e.error or 0.0)
    if not found:
        return "nothing could be done"
    worst, middle = found[-1], found[len(found) // 2]
    if not worst.error:
        return "no layer moves the outputs"
    text = f"{worst.where} moves the outputs most"
    if middle.error and len(found) > 2:
        text += f", {worst.error / middle.error:.1f} times as far as the middle one"
    return f"{text}; to leave it as it is: {worst.remedy}"


def trial(row: dict[str, Any], number: int, metric: Metric) -> str:
    """One line about a trial."""
    steps = [_short(entry) for entry in row["recipe"]]
    if (how := row.get("trained")) is not None:
        told = f"{how['limit']} samples" if "limit" in how else f"{how['epochs']} epochs"
        after = next((i for i, each in enumerate(row["recipe"]) if each["name"] == "quantize"), len(steps))
        steps.insert(after, f"train ({told})")
    recipe = " → ".join(steps)
    if "failed" in row:
        return f"{number}: {recipe}: {row['failed']}"
    text = f"{number}: {recipe}: {row['macs']:.0%} of the MACs, {size(row['size'])}"
    text += f", {_change(row['lost'], metric)}"
    for measured in row.get("latency", {}).values():
        text += f", {1 / measured['share']:.2f}x as fast"
    return text


def _change(loss: float, metric: Metric) -> str:
    """By how much the metric rose or fell."""
    rose = (loss < 0) == metric.higher_is_better and loss != 0
    return f"{metric.title} {'+' if rose else '-'}{metric.unit(abs(loss))}"


def _short(entry: dict[str, Any]) -> str:
    options = {key: value for key, value in entry.items() if key != "name"}
    if "ratios" in options:
        return f"{entry['name']} of {len(options['ratios'])} layers"
    text = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"{entry['name']} ({text})" if text else str(entry["name"])


def promise(made: Promise, metric: Metric) -> str:
    """The promise, or why it cannot be made."""
    at_most = (
        f"{_change(made.drop, metric)} ({metric.text(made.original)} -> {metric.text(made.changed)}) on "
        f"{made.samples} samples that the search has not seen; at most {metric.unit(made.high)} are lost "
        f"with {made.confidence:.0%} confidence ({made.interval})"
    )
    if made.looks > 1:
        at_most += f" (search {made.looks} of this folder on these samples: the confidence makes up for that)"
    if made.bound is None:
        return at_most
    asked = f"asked for: at most {metric.unit(made.bound)}"
    if made.kept:
        return f"kept: {at_most}; {asked}"
    needed = f"about {made.needed} such samples would do" if made.needed else "no number of samples would do"
    return f"not promised: {at_most}; {asked}; {needed}"
