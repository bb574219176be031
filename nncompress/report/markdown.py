"""A report for a pull request: what counts at once, the rest folded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nncompress.errors import on_one_line, printable
from nncompress.report.facts.content import Bars, Cell, Code, Column, Part, Report, Section, Table
from nncompress.report.facts.shown import shown

ROWS = 20  # of a table
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$^-])")
MOST_BYTES = 60_000  # of a comment on a pull request the most that is taken, nearly


def markdown(report: Report) -> str:
    """GitHub's Markdown; nothing in it is a link, an image, HTML or a mention that a name could have made."""
    for rows in (ROWS, 8, 3, 0):
        text = _all(report, rows)
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def _all(report: Report, rows: int) -> str:
    parts = [f"### {_text(report.title)}", _text(report.summary)]
    if len(report.outcomes) > 1 or (report.outcomes and len(report.sections) > 1):
        parts.append(_results(report))
    for section in report.sections:
        parts.append(_section(section, rows, many=len(report.sections) > 1))
    return "\n\n".join(filter(None, parts)) + "\n"


def _results(report: Report) -> str:
    columns = ("model", "against", "speed-up", "smaller", "MACs left", "quality", "outputs moved")
    rows = [
        (
            each.model,
            each.against,
            shown(each.speedup, "times"),
            shown(each.smaller, "times"),
            shown(each.macs, "share"),
            f"{shown(each.change, each.unit)} of {each.metric}" if each.change is not None else "",
            shown(each.drift, "share"),
        )
        for each in report.outcomes[: 3 * ROWS]
    ]
    table = _table([Column(title, "text" if i < 2 else "number") for i, title in enumerate(columns)], rows)
    return "\n\n".join(filter(None, (table, _more(len(report.outcomes) - len(rows)))))


def _section(section: Section, rows: int, *, many: bool) -> str:
    parts = []
    if many:
        parts += [f"#### {_text(section.command)}: {_text(section.source)}", _text(section.summary)]
    parts += [f"> **Warning:** {_text(text)}" for text in section.warnings[:ROWS]]
    parts.append(_more(len(section.warnings) - ROWS, "warnings"))
    inside = [text for part in section.parts if (text := _part(part, rows))]
    if section.environment:
        pairs = [(name, text) for name, text in section.environment.items()]
        inside.append(_titled("Where it was measured", _table([Column("what"), Column("")], pairs)))
    if inside and not rows:
        parts.append("Details are left out: they do not fit. --format html or json has them.")
    elif inside:
        parts.append("<details><summary>Details</summary>\n\n" + "\n\n".join(inside) + "\n\n</details>")
    return "\n\n".join(filter(None, parts))


def _part(part: Part, rows: int) -> str:
    if isinstance(part, Table):
        cells = [tuple(shown(c, col.unit) for c, col in zip(row, part.columns)) for row in part.rows[:rows]]
        left = part.left_out + max(0, len(part.rows) - rows)
        return _titled(part.title, _table(part.columns, cells), _more(left), _text(part.note))
    if isinstance(part, Bars):
        columns = [Column("name"), *(Column(name, "number") for name in part.series)]
        cells = [(r.name, *(shown(value, part.axis.unit) for value in r.values)) for r in part.rows[:rows]]
        left = part.left_out + max(0, len(part.rows) - rows)
        return _titled(part.title, _table(columns, cells), _more(left))
    if isinstance(part, Code):
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", part.text)), default=0))
        return _titled(part.title, f"{fence}{part.language}\n{printable(part.text.rstrip())}\n{fence}")
    return ""  # what a plot shows, tables say or the page does


def _more(left: int, what: str = "") -> str:
    return f"and {left} more {what}".rstrip() if left > 0 else ""


def _titled(title: str, *texts: str) -> str:
    return "\n\n".join((f"**{_text(title)}**", *filter(None, texts)))


def _table(columns: Sequence[Column], rows: Iterable[tuple[Cell, ...]]) -> str:
    lines = [
        f"| {' | '.join(_text(column.title) for column in columns)} |",
        f"|{'|'.join(' --- ' if column.unit == 'text' else ' ---: ' for column in columns)}|",
    ]
    lines += [f"| {' | '.join(_text(str(cell or '')) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _text(text: str) -> str:
    """Text that stays text."""
    escaped = on_one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = _SPECIAL.sub(r"\\\1", escaped)
    # a mention, and what is made a link without brackets
    return escaped.replace("@", "@\u200b").replace("://", ":\u200b//").replace("www.", "www\u200b.")
