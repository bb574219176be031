"""`report`: what runs have left behind, as one page."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from nncompress.cli import options
from nncompress.cli.later import later
from nncompress.cli.output_format import report_format
from nncompress.errors import UsageError

work = later("report:report")

_HELP = """One page of what runs have left behind: what was gained at what loss, with plots and the recipe.

RUN is what a command printed with --json (compress and every pass, bench, eval, sensitivity, optimize, train,
cycle, inspect --spectrum), the folder of optimize or cycle, a log of train, or a model file, which carries
what was done to it. Several make one page.

The page is one file that needs no network. --format md fits a pull request; --format json has the facts.
compress, the passes, optimize, bench, eval, sensitivity, train and cycle take --report FILE themselves.

Example:  nncompress compress model.pt --recipe small.toml --json > run.json
Example:  nncompress report run.json bench.json -o report.html
"""

_Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="files and folders that commands left")]
_Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help=".html, .md or .json; left out: printed (md, json)"),
]
_Format = Annotated[
    Literal["html", "md", "json"] | None, typer.Option("--format", help="[default: by the suffix of -o]")
]
MOST_RUNS = 100


def register(app: typer.Typer) -> None:
    app.command("report", help=_HELP)(report)


def report(runs: _Runs, output: _Output = None, form: _Format = None, json: options.Json = False) -> None:
    if json and form not in (None, "json"):
        raise UsageError("report: --json is --format json", got=f"--format {form}")
    wanted: str | None = "json" if json else form
    if output is None and wanted in (None, "html"):
        raise UsageError("report: where should the page go?", remedy="-o report.html; or --format md")
    if len(runs) > MOST_RUNS:
        most = f"at most {MOST_RUNS}"
        raise UsageError("report: too many runs for one page", got=str(len(runs)), expected=most)
    if output is not None and wanted is None:
        wanted = report_format(output)
    work(runs, output, wanted)
