"""The report as a page: its texts in the templates, its size bounded."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nncompress.errors import printable
from nncompress.report.facts.content import Bars, Cell, Plot, Report, Table, Unit
from nncompress.report.facts.headline import figures
from nncompress.report.facts.shown import shown
from nncompress.report.html.plots import named, xy
from nncompress.version import __version__

MOST_BYTES = 300_000
ROWS = (400, 150, 60, 25, 10, 5)  # of a table or plot: the first of these with which the page is small enough
TEMPLATES = Path(__file__).parent / "templates"


def page(report: Report) -> str:
    """The whole file, the same for the same report; at most 300 kB where any number of rows allows that."""
    for rows in ROWS:
        text = _rendered(report, rows)
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def _rendered(report: Report, rows: int) -> str:
    style, script = _asset("style.css"), _asset("page.js")
    return (
        _templates()
        .get_template("page.html")
        .render(
            report=report,
            figures=figures(report),
            rows=rows,
            style=Markup(style),
            script=Markup(script),
            style_hash=_digest(style),
            script_hash=_digest(script),
            version=__version__,
        )
    )


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else _visible(value),
    )
    made.filters |= {"shown": _shown, "rows_of": _rows_of, "numeric": _numeric}
    made.globals |= {"draw": _draw}
    return made


def _visible(value: Any) -> Any:
    """Text without characters that hide or reorder what stands beside them."""
    return printable(value) if isinstance(value, str) else value


@cache
def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a Content-Security-Policy names an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _shown(value: Cell, unit: Unit = "text") -> str:
    return shown(value, unit)


@dataclass(frozen=True)
class _Rows:
    shown: tuple[Any, ...]
    left_out: int


def _rows_of(table: Table, most: int) -> _Rows:
    return _Rows(table.rows[:most], table.left_out + max(0, len(table.rows) - most))


def _numeric(table: Table, position: int) -> bool:
    """Whether a column is of numbers: aligned at the right."""
    return position > 0 and table.columns[position].unit != "text"


def _draw(part: Plot | Bars, rows: int) -> Any:
    return xy.drawing(part, rows) if isinstance(part, Plot) else named.drawing(part, rows)
