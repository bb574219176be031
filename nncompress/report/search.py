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
    from nncompress.search.layers.sensitivity import Effect, Sensitivity
    from nncompress.search.promise import Promise

MOST, MOST_NAMED = 0.8, 3  # of the damage, that so many layers are named for at most
DONE = {
    "prune-nodes": "{:.0%} of its nodes removed",
    "factorize": "{:.0%} of its MACs kept",
    "quantize": "{:.0f} bits",
}


def sensitivity(result: Sensitivity, *, every: bool, metric: Metric | None = None) -> RenderableType:
    """A table per method: the layers that cost most first.

    Args:
        every: all strengths; else of each layer the middle one.
        metric: that of the result, where it has one.
    """
    lines: list[RenderableType] = []
    for method in dict.fromkeys(effect.method for effect in result.effects):
        mine = [effect for effect in result.effects if effect.method == method]
        strengths = sorted({effect.strength for effect in mine})
        shown = mine if every else [e for e in mine if e.strength == strengths[len(strengths) // 2]]
        asked = [name for name, given in (("lost", result.metric), ("time", result.target)) if given]
        table = plain("layer", "what", "error", *asked, "MACs", "bytes", right=2)
        for effect in sorted(shown, key=lambda e: (e.error is None, -_damage(e), e.where)):
            what = DONE[method].format(effect.strength)
            if effect.error is None:
                table.add_row(Name(effect.where), effect.said, *[""] * (3 + len(asked)), style="dim")
                continue
            more = [_lost(effect, metric) if name == "lost" else _time(effect) for name in asked]
            numbers = (f"{effect.error:.2%}", *more, _saved(effect.macs), _saved(effect.bytes))
            table.add_row(Name(effect.where), what, *numbers)
        lines += [line(method, style="bold"), table, line(worst(shown)), Text()]
    known = f", {result.known} known from before" if result.known else ""
    lost = f"; lost: of {result.metric} on the data" if result.metric else ""
    lost += " (points)" if metric is not None and metric.share else ""
    lost += ", which passes are fitted to, too" if result.metric else ""
    where = f"; time: in {result.target}, one thread, in turns with the original" if result.target else ""
    lines.append(
        line(
            f"error: distance of the outputs (relative L2 norm), {result.samples}{lost}{where}; "
            f"MACs, bytes: of the whole model's; {result.measured} measured{known}"
        )
    )
    return Group(*lines)


def _damage(effect: Effect) -> float:
    """What a layer is judged by: the metric where it was asked for, else the outputs."""
    return (effect.error if effect.lost is None else effect.lost) or 0.0


def _lost(effect: Effect, metric: Metric | None) -> str:
    if effect.lost is None or metric is None:
        return ""
    return f"{metric.shown(effect.lost):+.2f}" if metric.share else f"{effect.lost:+.3g}"


def _time(effect: Effect) -> str:
    """The saved time, in brackets where it may be none."""
    if effect.time is None:
        return ""
    text = _saved(effect.time.value)
    return text if 0 not in effect.time else f"({text})"


def _saved(saved: float) -> str:
    return f"{-saved:+.1%}" if saved else "0"


def worst(effects: list[Effect]) -> str:
    """Which layers hurt most, how much of the damage is theirs, and what leaves them alone at what price.

    Squared errors of the layers add up, nearly; of a metric, what each loses.
    """
    found = sorted((e for e in effects if e.error is not None), key=lambda e: (-_damage(e), e.where))
    if not found:
        return "nothing could be done"
    by_metric = any(e.lost is not None for e in found)
    weights = [max(_damage(e), 0.0) if by_metric else _damage(e) ** 2 for e in found]
    if not sum(weights):
        return "no layer loses anything of the metric" if by_metric else "no layer moves the outputs"
    what = "lose most of the metric" if by_metric else "move the outputs most"
    count = next((n for n in range(1, MOST_NAMED + 1) if sum(weights[:n]) >= MOST * sum(weights)), 1)
    named = found[:count]
    names = ", ".join(e.where for e in named)
    if count == 1:
        what = what.replace("lose", "loses", 1).replace("move", "moves", 1)
    share = sum(weights[:count]) / sum(weights)
    text = f"{names} {what}"
    if len(found) > count:
        text += f", {share:.0%} of what all {len(found)} do one by one"
    kept = sum(e.bytes for e in named) / (sum(e.bytes for e in found) or 1.0)
    remedy = " ".join(dict.fromkeys(e.remedy for e in named))
    text += f"; to leave {'it as it is' if count == 1 else 'them as they are'}: {remedy}"
    return text + (f", for {kept:.0%} of the saved bytes" if 0 < kept < 1 else "")


def trial(row: dict[str, Any], metric: Metric) -> str:
    """One line about a trial."""
    steps = [_short(entry) for entry in row["recipe"]]
    if (how := row.get("trained")) is not None:
        told = f"{how['limit']} samples" if "limit" in how else f"{how['epochs']} epochs"
        told += f" in {how['precision']}" if "precision" in how else ""
        after = next((i for i, each in enumerate(row["recipe"]) if each["name"] == "quantize"), len(steps))
        steps.insert(after, f"train ({told})")
    recipe = " → ".join(steps)
    if "failed" in row:
        return f"{recipe}: {row['failed']}"
    text = f"{recipe}: {row['macs']:.0%} of the MACs, {size(row['size'])}"
    text += f", {_change(row['lost'], metric)}"
    for measured in row.get("latency", {}).values():
        text += f", {1 / measured['share']:.2f}x as fast"
    return text


def _change(loss: float, metric: Metric) -> str:
    """By how much the metric rose or fell."""
    rose = loss == 0 or (loss < 0) == metric.higher_is_better
    return f"{metric.title} {'+' if rose else '-'}{metric.unit(abs(loss))}"


def _short(entry: dict[str, Any]) -> str:
    options = {key: value for key, value in entry.items() if key != "name"}
    if "ratios" in options:
        count = len(options["ratios"])
        return f"{entry['name']} of {count} layer{'s' if count != 1 else ''}"
    text = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in options.items()
    )
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
