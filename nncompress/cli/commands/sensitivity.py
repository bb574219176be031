"""`sensitivity`: which layer bears what."""

from __future__ import annotations

import time as clock
from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.declared import taking
from nncompress.cli.later import later
from nncompress.cli.quantities import seconds

work = later("search.sensitivity:sensitivity")

_HELP = """Measure each layer by itself: how far one pass on it moves the outputs, and what it saves.

prune-nodes, factorize and quantize, at several strengths, one layer or group at a time, all others as they
are. Answers which layer bears what, and which one killed the accuracy. What was measured once is kept in the
cache folder and not measured again.

Example:  nncompress sensitivity model.pt2 --data train.npz
"""

_Methods = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="PASS", help="prune-nodes, factorize or quantize (repeatable) [all]"),
]
_All = Annotated[bool, typer.Option("--all", help="every strength; else the middle one of each layer")]
_Folder = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="where results are kept [default: the cache folder]")
]
_Time = Annotated[str | None, typer.Option(metavar="10m", help="begin no measurement after this long")]


_Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="also what each loses of it, on --data: as in eval, or agreement, error (they need no labels)",
    ),
]
_Target = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="also what time each saves there, a second of measuring each"),
]


def register(app: typer.Typer) -> None:
    app.command("sensitivity", help=_HELP)(sensitivity)


@taking(options.LOADING)
def sensitivity(
    model: options.ModelArgument = None,
    method: _Methods = None,
    all_strengths: _All = False,
    folder: _Folder = None,
    time: _Time = None,
    metric: _Metric = None,
    target: _Target = None,
    limit: options.Limit = 512,
    seed: options.Seed = 0,
    report: options.Report = None,
    json: options.Json = False,
    **loading: Any,
) -> None:
    until = clock.monotonic() + seconds(time, "--time") if time else float("inf")
    work(
        model,
        methods=method,
        all_strengths=all_strengths,
        folder=folder,
        until=until,
        metric=metric,
        target=target,
        limit=limit,
        seed=seed,
        report=report,
        json=json,
        loading=loading,
    )
