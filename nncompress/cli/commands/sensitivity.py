"""`sensitivity`: which layer bears what."""

from __future__ import annotations

import time as clock
from pathlib import Path
from typing import Annotated, Any

import typer

from nncompress.cli import model_files, options, report_file
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.declared import taking
from nncompress.cli.quantities import seconds
from nncompress.errors import UsageError
from nncompress.files.folders import cache_folder
from nncompress.passes import Context
from nncompress.report import search as tables

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
    reads = model_files.read_by(None, model, loading["data"], loading["arch"])
    report_file.check_report(report, reads)
    opened = model_files.open_model(model, **loading)
    from nncompress import api
    from nncompress.search.records import Records
    from nncompress.search.sensitivity import METHODS, RECORD, probes
    from nncompress.search.sensitivity import sensitivity as measure

    methods = tuple(dict.fromkeys(method or METHODS))
    for each in methods:
        if each not in METHODS:
            raise UsageError(
                "sensitivity: --method names no pass it knows", got=each, expected=", ".join(METHODS)
            )
    data = loading["data"]
    samples = None if data is None else api.dataset(data, opened.model, loading["normalize"], say)
    if samples is None:
        say("no --data: errors are those on random inputs, and quantize rounds weights only")
    measured = None
    if metric is not None:
        if samples is None:
            raise UsageError("sensitivity: --metric is measured on data", remedy="add --data FILE.npz")
        from nncompress.search.measure import Measure, settled

        metric = settled(opened.model, samples, metric)
        measured = Measure(opened.model, metric).metric
    if target is not None:
        from nncompress.bench.latency.target import clocked

        target = clocked(target).name
    cache = cache_folder()
    if folder is None and cache is None:
        raise UsageError("sensitivity: there is no cache folder for this user", remedy="name a --folder")
    kept = Records(Path(folder) if folder else Path(str(cache)) / "sensitivity", RECORD)
    with progress() as bar:
        context = Context(data=samples, seed=seed, limit=limit, progress=bar)
        wanted = probes(opened.model, methods, context)
        result = measure(opened.model, wanted, context, kept, until, metric, target)
    for note in context.notes:
        say(note)
    missing = len(wanted) - len(result.effects)
    if missing:
        say(f"{missing} of {len(wanted)} were not measured in the time given: the same command goes on")
    if json:
        print_json(result.to_json())
    else:
        show(tables.sensitivity(result, every=all_strengths, metric=measured))
    report_file.write(report, result.to_json(), reads)
