"""A study's rows: the paper's number beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.console import Group, RenderableType

from nncompress.report.line import line
from nncompress.report.tables import plain
from nncompress.report.units import count, size

if TYPE_CHECKING:
    from nncompress.results import Result
    from nncompress.studies import StudyResult
    from nncompress.studies.comparison import ComparisonResult, Measured
    from nncompress.studies.growth.trainings import GrowthResult
    from nncompress.studies.sharesnet import SharingResult


def report(result: Result) -> RenderableType:
    """The tables of any study."""
    if result.kind == "sharing":
        return sharing(cast("SharingResult", result))
    if result.kind == "growth":
        return growth(cast("GrowthResult", result))
    if result.kind == "comparison":
        return comparison(cast("ComparisonResult", result))
    return study(cast("StudyResult", result))


def study(result: StudyResult) -> RenderableType:
    """One row per way of doing it, mean ± standard deviation over the seeds."""
    table = plain("", "paper", "seeds", "nodes", "cycles", "loss", right=2)
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    for row in result.rows:
        nodes = "-".join(f"{n:.3g}" for n in row.mean_nodes())
        cycles = sum(t.cycles for t in row.trials) / len(row.trials)
        mean = sum(row.losses) / len(row.losses)
        loss = f"{mean:.2g} ± {row.loss_spread():.1g}" if len(row.trials) > 1 else f"{mean:.2g}"
        table.add_row(row.name, row.paper or "–", str(len(row.trials)), nodes, f"{cycles:.3g}", loss)
    return Group(table, line(f"{result.verdict} ({result.seconds:.0f} s)"))


def growth(result: GrowthResult) -> RenderableType:
    """One row per way of training, mean ± standard deviation over the seeds, then what was timed."""
    table = plain("", "paper", "seeds", "params", "grown", result.measure, "CPU s", right=2)
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    for row in result.rows:
        value = f"{row.mean:.4g}" + (f" ± {row.spread:.2g}" if len(row.trials) > 1 else "")
        first, *_ = row.trials
        cells = [str(len(row.trials)), count(first.parameters), str(first.growths), value]
        table.add_row(row.name, row.paper or "–", *cells, f"{row.seconds:.0f}")
    lines: list[RenderableType] = [table]
    if result.ratios:
        timed = plain("times", "paper", "ours", "95 %", right=2)
        timed.columns[0].overflow = timed.columns[1].overflow = "fold"
        for ratio in result.ratios:
            interval = f"{ratio.value.low:.3f} to {ratio.value.high:.3f}"
            timed.add_row(ratio.name, ratio.paper or "–", f"{ratio.value.value:.3f}x", interval)
        lines.append(timed)
    lines.append(line(f"ours: {result.budget}", style="dim"))
    return Group(*lines, line(f"{result.verdict} ({result.seconds:.0f} s)"))


HEADINGS = {
    "parameters": "params",
    "nonzero": "nonzero",
    "macs": "MACs",
    "file_size": "file",
    "top1": "top-1 %",
    "difference": "points",
    "seconds": "time",
    "speedup": "speed",
}


def comparison(result: ComparisonResult) -> RenderableType:
    """One row per network; where the paper gives a figure, it stands below ours and is called so."""
    table = plain(result.study, *(HEADINGS[column] for column in result.columns))
    for row in result.rows:
        table.add_row(row.name, *(_cell(row, column) for column in result.columns))
        if row.paper:
            said = (row.paper.get(column, "") for column in result.columns)
            table.add_row("  paper", *said, style="dim")
    lines: list[RenderableType] = [table, line(f"ours: {result.budget}", style="dim")]
    lines += [line(note, style="dim") for note in result.notes]
    return Group(*lines, line(f"{result.verdict} ({result.seconds:.0f} s)"))


def _cell(row: Measured, column: str) -> str:
    value = getattr(row, column)
    if value is None:
        return "–"
    if column in ("parameters", "nonzero", "macs"):
        return count(value)
    if column == "file_size":
        return size(value)
    if column == "top1":
        mean = f"{100 * row.mean_top1:.2f}"
        return mean if len(value) == 1 else f"{mean} / {100 * max(value):.2f}"
    if column == "difference":
        return f"{100 * value.value:+.2f}"
    return f"{1e3 * value:.2f} ms" if column == "seconds" else f"{value.value:.2f}x"


def sharing(result: SharingResult) -> RenderableType:
    """Table 1 of the paper counted anew, then accuracy where it was measured."""
    table = plain("Table 1", "params", "shared", "fewer", "convolutions", "shared")
    for each in result.networks:
        network = each.network
        fewer = 100 * (1 - each.shared_parameters / each.parameters)
        table.add_row(
            network.name,
            f"{each.parameters / 1e6:.2f} M",
            f"{each.shared_parameters / 1e6:.2f} M",
            f"{fewer:.0f} %",
            str(network.depth),
            str(each.shared_convolutions),
        )
        table.add_row(
            "  paper",
            f"{network.parameters} M",
            f"{network.shared_parameters} M",
            f"{100 * (1 - network.shared_parameters / network.parameters):.0f} %",
            str(network.convolutions),
            str(network.shared_convolutions),
            style="dim",
        )
    why = (
        "The paper's convolution counts are the depth less (blocks - stages), as if every block of a stage "
        "took part; its parameter counts follow only where strided 3×3 (bottleneck networks) and first "
        "blocks (wide networks) keep their own weight. So do ours."
    )
    lines: list[RenderableType] = [table, line(why, style="dim")]
    if result.accuracy is not None:
        lines.append(comparison(result.accuracy))
    return Group(*lines, line(f"{result.verdict} ({result.seconds:.0f} s)"))
