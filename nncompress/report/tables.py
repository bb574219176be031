"""Results as tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from nncompress.analysis.metrics.registry import named_metric
from nncompress.errors import on_one_line
from nncompress.report.line import line
from nncompress.report.units import count, duration, share, size, times

if TYPE_CHECKING:
    from nncompress.analysis.cost import Cost
    from nncompress.analysis.distance.converted import Converted
    from nncompress.analysis.lowrank.spectrum import LayerSpectrum
    from nncompress.exporting import ExportReport
    from nncompress.ir import Model
    from nncompress.ir.graph.verify import Drift
    from nncompress.pipeline import Step
    from nncompress.results import CompareResult, EvalResult, MetricDifference, PairedResult
    from nncompress.zoo.registry import Architecture

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
LARGE = 1e-2  # a difference that says nothing without the size of the outputs
SHOWN_CHANGES = 12  # a long network's changes are summed up after this many


class _Rows(Table):
    """Text in a cell is on one line before it is folded."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, **kept: Any) -> None:
        super().add_row(*(on_one_line(c) if isinstance(c, str) else c for c in cells), style=style, **kept)


def plain(*headers: str, right: int = 1) -> Table:
    """A table without frame whose columns from `right` on are right-aligned numbers."""
    table = _Rows(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, header in enumerate(headers):
        number = position >= right
        table.add_column(header, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return table


class Name:
    """A dotted name that takes the room there is: broken at its dots or underscores where that is less."""

    NARROWEST = 13  # columns that it asks for

    def __init__(self, text: str) -> None:
        self.text = on_one_line(text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(self.NARROWEST, len(self.text)), len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(broken(self.text, options.max_width))


def broken(name: str, width: int) -> str:
    """Long dotted names on several lines: broken between names, else at dots, else at underscores."""
    if len(name) <= width:
        return name
    cut = next((found for mark in " ._" if (found := name.rfind(mark, 1, width) + 1)), width)
    return f"{name[:cut].rstrip()}\n{broken(name[cut:], width)}"


def layers(model: Model, cost: Cost, path: Path) -> RenderableType:
    """One row per layer, a total, and what the model takes and gives."""
    table = plain("layer", "kind", "weight", "params", "%", "MACs", "%", "bytes", right=3)
    table.columns[1].no_wrap = False
    if any(len(row.name) > Name.NARROWEST for row in cost.layers):
        table.padding = (0, 1, 0, 0)  # room for names
    for row in cost.layers:
        table.add_row(
            Name(row.name),
            "attention" if row.kind == "scaled_dot_product_attention" else row.kind,
            "×".join(map(str, row.shape)) + (f" int{row.bits}" if 0 < row.bits <= 8 else ""),
            count(row.parameters),
            share(row.parameters, cost.parameters),
            count(row.macs),
            share(row.macs, cost.macs),
            size(row.bytes),
        )
    table.add_section()
    table.add_row("total", "", "", count(cost.parameters), "", count(cost.macs), "", size(cost.bytes))
    lines = [line(f"{path}: {'; '.join(map(str, model.inputs))} -> {', '.join(model.outputs)}", style="bold")]
    if model.agreement is not None:
        exactly = "exactly" if model.agreement == 0 else f"to {model.agreement:.1e}"
        lines.append(line(f"on random inputs its outputs are those of what the file holds, {exactly}"))
    if cost.nonzero < cost.parameters:
        lines.append(
            line(f"{share(cost.parameters - cost.nonzero, cost.parameters)} % of the parameters are zero")
        )
    if model.history:
        lines.append(line("history: " + " → ".join(str(record["pass"]) for record in model.history)))
    return Group(*lines, table)


def speed_table(targets: Sequence[dict[str, Any]]) -> RenderableType:
    """What each of these takes for one network, in the precisions that it has here; then the fastest.

    Args:
        targets: `nncompress.targets.speed.row` of each, all of them timed.
    """
    precisions = [name for name in PRECISIONS if any(name in each["seconds_in"] for each in targets)]
    table = plain("one run in", *precisions)
    every = []
    for each in targets:
        took = each["seconds_in"]
        table.add_row(each["title"], *(duration(took[p]) if p in took else "–" for p in precisions))
        every += [(seconds, each["title"], precision) for precision, seconds in took.items()]
    _, title, precision = min(every)
    said = f"fastest here: {title}, in {precision}"
    if precision == "int8":
        floats = min(targets, key=lambda each: each["seconds"])
        said += f"; of models in floats: {floats['title']}, which computes them in {floats['computes_in']}"
    about = "timed on a small stack of convolutions, one thread, CPU time; ratios of other networks differ"
    return Group(table, line(said), line(about))


def architectures(rows: Sequence[Architecture]) -> RenderableType:
    """One row per network that `new` can build."""
    table = plain("name", "input", "params", "MACs", right=2)
    for row in rows:
        table.add_row(row.name, "×".join(map(str, row.shape)), count(row.parameters), count(row.macs))
    lines = [Text.assemble((row.name, "bold"), f": {row.summary}") for row in rows]
    return Group(*lines, Text(), table)


_BARS = " ▁▂▃▄▅▆▇█"
_PLOT_WIDTH = 32


def spectra(rows: list[LayerSpectrum]) -> RenderableType:
    """One line plot per layer: its singular values, the largest full height, from first to last."""
    table = plain("layer", "matrix", "singular values", "90 %", "99 %", "of", right=3)
    for row in rows:
        shape = "×".join(map(str, row.shape))
        ranks = [str(row.rank_for(share_kept)) for share_kept in (0.9, 0.99)]
        table.add_row(Name(row.name), shape, _sparkline(row.values), *ranks, str(len(row.values)))
    note = "90 %, 99 %: the rank that keeps this share of the squared singular values"
    return Group(table, line(note, style="dim"))


def _sparkline(values: Sequence[float]) -> str:
    largest = max(values, default=0.0) or 1.0
    width = min(_PLOT_WIDTH, len(values))
    picked = [values[i * len(values) // width] for i in range(width)]
    return "".join(_BARS[round(value / largest * (len(_BARS) - 1))] for value in picked)


def step(result: Step) -> RenderableType:
    """What one pass did, layer by layer, and what it changed in sum."""
    options = ", ".join(_setting(name, value) for name, value in result.settings.items())
    title = line(f"{result.name}", style="bold")
    title.append(f" ({options})" if options else "", style="not bold")
    applied = [c for c in result.changes if c.applied]
    left = [c for c in result.changes if not c.applied]
    title.append(f": {len(applied)} changed, {len(left)} skipped, {result.seconds:.1f} s", style="not bold")
    changes = plain("layer", "change", right=2)
    for change in [*applied, *left][:SHOWN_CHANGES]:
        changes.add_row(Name(change.where), change.what, style=None if change.applied else "dim")
    hidden = len(result.changes) - SHOWN_CHANGES
    if hidden > 0:
        changes.add_row("…", f"and {hidden} more (--json lists all)", style="dim")
    sums = plain("", "before", "after", "ratio")
    for name in ("parameters", "nonzero", "macs", "bytes"):
        before, after = getattr(result.before, name), getattr(result.after, name)
        form = size if name == "bytes" else count
        label = {"macs": "MACs", "nonzero": "non-zero"}.get(name, name)
        sums.add_row(label, form(before), form(after), times(before, after))
    lines: list[RenderableType] = [title]
    if result.changes:
        lines.append(changes)
    lines.append(sums)
    lines += _moved(result)
    lines += [line(note) for note in result.notes]
    lines += _warned(result)
    return Group(*lines, Text())


def moved(converted: Converted) -> RenderableType:
    """How far another precision took the outputs."""
    return Group(*_moved(converted), *_warned(converted))


def _moved(result: Step | Converted) -> list[RenderableType]:
    worst = max(result.drift, key=lambda d: d.amount, default=None)
    return [] if worst is None else [line(f"{_distance(worst)}, {result.samples}")]


def _warned(result: Step | Converted) -> list[RenderableType]:
    return [line(f"warning: {warning}", style="yellow") for warning in result.warnings]


def _distance(drift: Drift) -> str:
    """7.61% of what: a norm, or entries of a whole-number output, or of one with infinities."""
    if drift.misplaced >= drift.relative and drift.misplaced:
        return f"{drift.misplaced:.2%} of the outputs are infinite in one model and not in the other"
    if drift.counted:
        return f"{drift.relative:.2%} of the outputs' entries differ from the original's"
    return f"outputs are {drift.relative:.2%} away from the original's (relative L2 norm)"


def _setting(name: str, value: Any) -> str:
    """An option as it was typed: "macs 0.5", "faster", "exclude head*+stem"."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    return f"{name} {'+'.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"


def written(report: ExportReport) -> RenderableType:
    """Where the file is, and how it was checked."""
    text = f"wrote {report.path} ({size(report.bytes)})"
    if report.target:
        text += " for any runtime" if report.target == "any" else f" for {report.target}"
    if report.runtime:
        batches = " and ".join(map(str, report.batches))
        text += f"; {report.runtime} agrees to {report.max_abs_diff:.1e}"
        if (report.max_abs_diff or 0) > LARGE and report.relative_error is not None:  # of how large outputs?
            text += f" ({report.relative_error:.1%} of the outputs)"
        text += f" at batch {batches}"
    if report.not_compared:
        text += f"; read back, its tensors are equal, its outputs were not compared: {report.not_compared}"
    if report.not_read:
        text += f"; nncompress cannot read it again: {report.not_read}"
    for given, taken in report.state:
        text += f"; state: hand {taken} to the next call's {given}"
    if report.rounding:
        text += f"; {report.rounding}"
    if report.choices:
        text += f"; {report.choices}"
    if report.int8:
        text += f"; {report.int8}"
    for path in report.left:
        text += f"; {path} is left of another export, {report.path.name} does not use it"
    if report.portable:
        text += f"; outside the delegate, slower: {', '.join(report.portable)}"
    return line(text, style="bold")


@dataclass
class EvalRow:
    """One model's line in `evaluation`; what was not measured is None."""

    name: str
    runtime: str
    result: EvalResult | None = None
    paired: PairedResult | MetricDifference | None = None
    difference: CompareResult | None = None

    def to_json(self) -> dict[str, Any]:
        parts = {"result": self.result, "paired": self.paired, "difference": self.difference}
        return {
            "name": self.name,
            "runtime": self.runtime,
            **{key: part.to_json() for key, part in parts.items() if part is not None},
        }


def evaluation(rows: list[EvalRow]) -> RenderableType:
    """Accuracy of every model, then what the later ones differ in from the first."""
    parts: list[RenderableType] = []
    results = [row.result for row in rows if row.result is not None]
    if results:
        columns = [
            name
            for name in dict.fromkeys((results[0].metric or "", "top1", "top5", "rmse", "mse"))
            if value_of(results[0], name) is not None
        ]
        paired = any(row.paired is not None for row in rows)
        headers = [heading(c) for c in columns] + (["against the first"] if paired else [])
        runtimes = list(dict.fromkeys(row.runtime for row in rows))
        table = plain("model", *headers)
        for row in rows:
            assert row.result is not None
            cells = [_accuracy(row.result, column) for column in columns]
            if paired:
                cells.append(_paired(row.paired))
            table.add_row(Name(row.name), *cells)
        ran = [
            f"{runtime}: {', '.join(r.name for r in rows if r.runtime == runtime)}" for runtime in runtimes
        ]
        where = f"{results[0].samples} samples of {results[0].data}; " + (
            "; ".join(ran) if len(runtimes) > 1 else f"in {runtimes[0]}"
        )
        parts += [table, line(where, style="dim")]
    compared = [(row.name, row.difference) for row in rows if row.difference is not None]
    if compared:
        answers = any(each.agreement is not None for _, difference in compared for each in difference.outputs)
        headers = [*(["agree %"] if answers else []), "cosine", "SQNR dB", "max diff"]
        table = plain("against the first", "output", *headers, right=2)
        for name, difference in compared:
            for each in difference.outputs:
                table.add_row(
                    Name(name),
                    each.name,
                    *([_percent(each.agreement)] if answers else []),
                    f"{each.cosine:.4f}",
                    f"{each.sqnr_db:.1f}",
                    f"{each.max_abs:.2g}",
                )
        parts += [*([Text()] if parts else []), table]
    return Group(*parts)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def value_of(result: EvalResult, column: str) -> float | None:
    """The value of a metric in a result, None where it was not measured."""
    if column == result.metric:
        return result.value
    found: float | None = getattr(result, column, None) if column else None
    return found


def heading(name: str) -> str:
    metric = named_metric(name)
    return f"{metric.title} %" if metric.share else metric.title


def _accuracy(result: EvalResult, column: str) -> str:
    value = value_of(result, column)
    if value is None:
        return ""
    if column == "top1" and result.top1_standard_error:  # 0 where all are right, or none, which tells nothing
        return f"{100 * value:.2f} ± {100 * result.top1_standard_error:.2f}"
    metric = named_metric(column)
    shown = f"{100 * value:.2f}" if metric.share else f"{value:.4g}"
    if column != result.metric or result.interval is None:
        return shown
    low, high = (metric.shown(x) for x in (result.interval.low, result.interval.high))
    return f"{shown} [{low:.2f}, {high:.2f}]" if metric.share else f"{shown} [{low:.4g}, {high:.4g}]"


def _paired(paired: PairedResult | MetricDifference | None) -> str:
    if paired is None:
        return ""
    metric = named_metric(getattr(paired, "metric", "top1"))
    value, low, high = (
        metric.shown(x) for x in (paired.difference.value, paired.difference.low, paired.difference.high)
    )
    form = "+.2f" if metric.share else "+.3g"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
