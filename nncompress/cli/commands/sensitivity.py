"""`sensitivity`: which layer bears what."""

from __future__ import annotations

import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nncompress.cli import model_files, options, report_file
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.declared import taking
from nncompress.cli.quantities import seconds
from nncompress.errors import UsageError
from nncompress.files.folders import cache_folder, folder_to_fill
from nncompress.passes import Context
from nncompress.report import search as tables

if TYPE_CHECKING:
    from nncompress.search.records import Records

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
    from nncompress.search.sensitivity import METHODS, probes
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
    with _kept(folder) as kept, progress() as bar:
        context = Context(data=samples, seed=seed, limit=limit, progress=bar)
        wanted = probes(opened.model, methods, context)
        result = measure(opened.model, wanted, context, kept, until, metric, target)
    for note in context.notes:
        say(note)
    if kept.unkept:
        say(f"what was measured is measured anew next time: {kept.unkept}; --folder names a folder for it")
    missing = len(wanted) - len(result.effects)
    if missing:
        say(f"{missing} of {len(wanted)} were not measured in the time given: the same command goes on")
    if json:
        print_json(result.to_json())
    else:
        show(tables.sensitivity(result, every=all_strengths, metric=measured))
    report_file.write(report, result.to_json(), reads)


@contextmanager
def _kept(folder: str | None) -> Iterator[Records]:
    """What is kept where the user says, else in the cache folder, where that can be written."""
    from nncompress.search.records import Records
    from nncompress.search.sensitivity import RECORD

    if folder:
        with folder_to_fill(folder) as made:
            yield Records(made, RECORD)
    else:
        cache = cache_folder()
        yield Records(cache and cache / "sensitivity", RECORD, needed=False)
