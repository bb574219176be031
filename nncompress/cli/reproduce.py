"""`reproduce`: the papers' experiments, their numbers beside ours."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from nncompress.cli import options
from nncompress.cli.console import print_json, progress, say, show
from nncompress.errors import UsageError

_HELP = """Run an experiment of the papers anew: summation, or autoencoder (needs --data mnist:DIR).

Example:  nncompress reproduce summation --runs 10 --plot summation.png
"""


def register(app: typer.Typer) -> None:
    app.command("reproduce", help=_HELP)(reproduce)


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="summation or autoencoder")],
    runs: Annotated[int | None, typer.Option(min=1, help="seeds [default: the study's own]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a small version, under a minute")] = False,
    data: options.Data = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help=".png or .svg of nodes and loss")] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    from nncompress.report.studies import study
    from nncompress.studies import STUDIES, Request
    from nncompress.studies import plot as draw

    if name not in STUDIES:
        raise UsageError("reproduce: no such study", got=name, expected=", ".join(STUDIES))
    if plot is not None and Path(plot).suffix.lower() not in (".png", ".svg"):
        raise UsageError("reproduce: --plot has another suffix", got=plot, expected=".png or .svg")
    with tempfile.TemporaryDirectory() as folder, progress() as bar:
        request = Request(Path(folder), runs, quick, data, seed, bar, say)
        result = STUDIES[name].run(request)
    if plot is not None:
        draw(result, Path(plot))
    if json:
        print_json(result.to_json())
    else:
        show(study(result))
