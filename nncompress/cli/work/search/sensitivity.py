"""`sensitivity`: each layer by itself, what was measured once kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nncompress import api
from nncompress.benchmarking.latency.target import clocked
from nncompress.cli.console import how_to_go_on, print_json, progress, say, show
from nncompress.cli.work import model_files, report_file
from nncompress.errors import UsageError
from nncompress.files.folders import cache_folder, folder_to_fill
from nncompress.passes import Context
from nncompress.report import search as tables
from nncompress.search.layers.sensitivity import METHODS, RECORD, probes
from nncompress.search.layers.sensitivity import sensitivity as measure
from nncompress.search.measure import Measure, settled
from nncompress.search.records import Records

GOES_ON = "has what was measured: the same command goes on"


def sensitivity(
    model: str | None,
    *,
    methods: list[str] | None,
    all_strengths: bool,
    folder: str | None,
    until: float,
    metric: str | None,
    target: str | None,
    limit: int,
    seed: int,
    report: str | None,
    json: bool,
    loading: dict[str, Any],
) -> None:
    """See the options of the command.

    Args:
        until: no measurement begins after that, by `time.monotonic`.

    Raises:
        UsageError: there is no such method, or a metric is named and no data.
    """
    reads = model_files.read_by(None, model, loading["data"], loading["arch"])
    report_file.check_report(report, reads)
    opened = model_files.open_model(model, **loading)
    chosen = tuple(dict.fromkeys(methods or METHODS))
    for each in chosen:
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
        metric = settled(opened.model, samples, metric)
        measured = Measure(opened.model, metric).metric
    if target is not None:
        target = clocked(target).name
    with _kept(folder) as kept, how_to_go_on(kept.place, GOES_ON), progress() as bar:
        context = Context(data=samples, seed=seed, limit=limit, progress=bar)
        wanted = probes(opened.model, chosen, context)
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
    if folder:
        with folder_to_fill(folder) as made:
            yield Records(made, RECORD)
    else:
        cache = cache_folder()
        yield Records(cache and cache / "sensitivity", RECORD, needed=False)
