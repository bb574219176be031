"""`optimize`: the search in its folder, what it found written, and what is promised of that."""

from __future__ import annotations

import os
import shlex
import time as clock
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

from nncompress import api, exporting
from nncompress.analysis.answer import settle_answer
from nncompress.analysis.cost import cost
from nncompress.analysis.metrics.base import Metric
from nncompress.benchmarking.environment import environment
from nncompress.benchmarking.latency.int8_speed import int8_speed
from nncompress.benchmarking.latency.target import clocked, floats_in
from nncompress.cli.console import how_to_go_on, print_json, progress, say, show
from nncompress.cli.output_format import written_for
from nncompress.cli.quantities import size
from nncompress.cli.work import model_files, report_file
from nncompress.cli.work.search import made_again
from nncompress.cli.work.search.search_folder import ORIGINAL, SETTINGS, begin, half
from nncompress.cli.work.search.sensitivity import GOES_ON
from nncompress.data.spec import is_code
from nncompress.errors import PromiseError, UsageError
from nncompress.files.folders import folder_to_fill
from nncompress.files.json_file import write_json
from nncompress.files.signed_text import is_signed
from nncompress.files.targets import check_chosen, check_target
from nncompress.ir.formats.samples import said_of, without_samples
from nncompress.passes import Context, Quantize
from nncompress.report import search as tables
from nncompress.report.tables import written
from nncompress.results import SCHEMA
from nncompress.runtimes import OPENERS
from nncompress.search.candidates import Recipe
from nncompress.search.finetune import Training
from nncompress.search.measure import Measure, settled
from nncompress.search.optimize import Bounds, Search
from nncompress.search.promise import RESULT
from nncompress.search.records import model_key, read
from nncompress.search.trial import recipe_of


def find(
    model: str | None,
    asked: dict[str, Any],
    *,
    metric: str | None,
    max_drop: float | None,
    max_size: str | None,
    clock_in: bool,
    fit: str | None,
    trials: int,
    until: float,
    training: dict[str, Any] | None,
    folder: str | None,
    target: str | None,
    output: str | None,
    no_samples: bool,
    limit: int,
    seed: int,
    report: str | None,
    json: bool,
    loading: dict[str, Any],
) -> None:
    """Search, write the best and say what is promised of it.

    Args:
        asked: the other bounds and the goal.
        max_drop: in the unit of `metric` that users read.
        max_size: bytes, or a share of what the weights take now.
        clock_in: latencies are measured.
        until: of the clock, when no further trial begins.
        training: how to fine-tune, see `Training`; None: not at all.

    Raises:
        PromiseError: the promise is not kept.
    """
    opened = model_files.open_model(model, **loading)
    whole = cost(opened.model).bytes
    asked["size"] = None if max_size is None else size(max_size, "--max-size", whole)
    data = loading["data"]
    reads = model_files.read_by(opened, data, fit, loading["arch"])
    result = model_files.output_for(output, model_files.default_output(opened, "optimize"), reads)
    kept = Path(folder or f"{opened.stem}.optimize")
    if result.resolve() == (kept / ORIGINAL).resolve():
        raise UsageError(f"{result} is where the search keeps the original", remedy="give -o another name")
    for file in made_again.recipe_files(result):
        check_target(file, reads)
        check_chosen(file, is_signed)
    exporting.check_ops(opened.model, result)
    report_file.check_report(report, reads, result, *made_again.recipe_files(result))
    chooses = api.dataset(half(data, 1), opened.model, loading["normalize"], say)
    if chooses.has_labels:
        settle_answer(opened.model, chooses)
    asked["metric"] = settled(opened.model, chooses, metric)
    measure = Measure(opened.model, asked["metric"])
    if metric is None and asked["metric"] != "top1":
        why = "the labels ask for it" if chooses.has_labels else f"{data} has no labels"
        say(f"measured by {asked['metric']} ({measure.metric.title}): {why}; --metric names another")
    asked["drop"] = _drop(max_drop, measure.metric)
    if clock_in:
        where = clocked(target, *([asked["ends_in"]] if asked["ends_in"] else ["int8", None]))
        asked["target"] = where.name
        floats_in(where, asked["ends_in"])  # refused before the search
        chosen = "" if target else ", the fastest here (--target names another)"
        say(f"latencies are measured in {where.runtime_name}{chosen}")
    settings: dict[str, Any] = {
        "schema": 1,
        "kind": "search",
        "model": model_key(opened.model),
        "directory": os.getcwd(),
        "data": data,
        "fit": fit or half(data, 1),
        "normalize": loading["normalize"],
        "limit": limit,
        "seed": seed,
        "bounds": asked,
    }
    with folder_to_fill(kept):
        begin(kept, settings, opened, named=folder is not None, trained=training is not None)
    words = ["nncompress", "optimize", "--join", str(kept), *(["--data", data] if is_code(data) else [])]
    help_it = shlex.join([*words, *(["--metric", metric] if metric and ":" in metric else [])])
    if training is not None and fit is None:
        say(
            "--finetune learns the half of --data that chooses, so what is said of trained trials meanwhile "
            "is too good; the promise is not. --fit DATA names other samples"
        )
    say(f"workers that help:  {help_it}")
    say("as a SLURM array:   #SBATCH --array=1-8")
    say(f"                    srun {help_it}")
    with how_to_go_on(lambda: kept, GOES_ON), progress() as bar:
        search = _search(kept, settings, bar)
        learning = None if training is None else Training(**training)
        if learning is not None:
            search.trainer.check_data(learning)
        stopped = _run(search, trials, until, learning)
        search.measure_here()
        unseen = api.dataset(half(data, 2), search.original, loading["normalize"])
        best, made, said = search.promise(unseen)

        row = search.trials.get(best) or {}
        recipe = _as_made(recipe_of(row), no_samples, target)
        if no_samples:
            made.inputs = without_samples(made.inputs)
        elif result.suffix.lower() == ".pt2" and (note := said_of(made.inputs)) is not None:
            say(note)
        bar.step(f"writing {result.name}", 0, None)
        output_file = exporting.write(
            made, result, protect=reads, target=written_for(result, target), time_int8=int8_speed
        )
        files, commands = made_again.write(
            result,
            recipe,
            row.get("trained"),
            original=opened.path,
            fit=settings["fit"],
            loading={**loading, "arch": opened.arch},
            settings=settings,
            target=target,
            reads=reads,
        )
        model_files.remember(opened, result, opened.model, made)

        if result.suffix.lower() in OPENERS:  # what is promised is what was written
            said = search.promised(result, unseen, said.looks)
    count = len(search.trials.all())
    document = {
        "schema": SCHEMA,
        "kind": "optimize",
        "model": str(opened.path),
        "best": row,
        "trials": search.trials.all(),
        "promise": said.to_json(),
        "output": output_file.to_json(),
        "recipe": str(files[0]),
        "commands": commands,
        "stopped": stopped,
        "environment": environment(),
    }
    write_json(kept / RESULT, document)
    if json:
        print_json(document)
    else:
        found = tables.trial(row, measure.metric)
        show(f"best of {count} trials{' so far' if stopped else ''}: {found}")
        show(written(output_file))
        show(f"wrote {' and '.join(map(str, files))}; the result is made again by")
        for command in commands:
            show(f"  {command}")
        if said.kept:
            show(tables.promise(said, measure.metric))
    report_file.write(report, document, (*reads, result, *files))
    if not said.kept:
        raise PromiseError(
            f"optimize: {tables.promise(said, measure.metric)}", remedy="more samples, or a larger --max-drop"
        )


def _as_made(recipe: Recipe, no_samples: bool, target: str | None) -> Recipe:
    """What makes the result again; with --target, no clock decides again which layers are rounded."""

    def of(each: Quantize) -> Quantize:
        if no_samples and each.mode != "float16":
            each = replace(each, no_samples=True)
        return replace(each, every_layer=True) if target and each.mode == "static" else each

    return tuple(of(each) if isinstance(each, Quantize) else each for each in recipe)


def _search(folder: Path, settings: dict[str, Any], bar: Any) -> Any:
    """The search in a folder, opened by what its `search.json` says."""
    original = api.load(folder / ORIGINAL)
    normalize = settings["normalize"]
    fitted = api.dataset(settings["fit"], original, normalize)
    selection = api.dataset(half(settings["data"], 1), original, normalize)
    context = Context(data=fitted, seed=settings["seed"], limit=settings["limit"], progress=bar)
    return Search(folder, original, selection, context, Bounds(**settings["bounds"]))


def _drop(given: float | None, metric: Metric) -> float | None:
    """`--max-drop` in the metric's own unit: a share is 0 … 1.

    Raises:
        UsageError: more points than there are.
    """
    if given is None or not metric.share:
        return given
    if given > 100:
        raise UsageError("--max-drop is in points of a share", got=f"{given:g}", expected="0 to 100")
    return given / 100


def _run(search: Any, trials: int, until: float, training: Training | None = None) -> bool:
    """Search; True where it was stopped before all was tried."""

    def told(row: dict[str, Any]) -> None:
        rows = search.trials.all()
        best = search.best(rows)
        mark = "; the best so far" if best is not None and rows[best] == row else ""
        say(f"{len(rows)}: {tables.trial(row, search.judge.measure.metric)}{mark}")

    try:
        search.run(trials, until, told, say)
        stopped = clock.monotonic() >= until
        if training is not None and not search.finetune(training, told):
            say("--finetune trains nothing: no cut that loses too much would else be better than the best")
    except KeyboardInterrupt:
        if not search.trials.all():  # nothing to take: an interrupt like any other
            raise
        say("interrupted: the best so far is taken; the same command goes on searching")
        return True
    return stopped


def join(
    folder: Path, model: str | None, data: str | None, metric: str | None, trials: int, until: float
) -> None:
    """Be a worker of a search.

    Args:
        data, metric: those of the search, which have to be given where they are code: a file runs none by
            itself.

    Raises:
        UsageError: the folder holds none, or a model was given besides.
    """
    if model is not None:
        raise UsageError("optimize --join takes its model from the folder", got=model, remedy="leave it out")
    settings = read(folder / "search.json", SETTINGS)
    if settings is None:
        raise UsageError(
            f"{folder} holds no search",
            remedy="nncompress optimize model.pt2 --data val.npz --max-drop 0.5 --folder "
            + shlex.quote(str(folder)),
        )
    measured_by = settings["bounds"]["metric"]
    for what, given, known in (("data", data, settings["data"]), ("metric", metric, measured_by)):
        if given not in (None, known):
            raise UsageError(f"optimize --join takes its {what} from the folder", got=given, expected=known)
    if metric is None and ":" in measured_by:
        raise UsageError(
            f"the search in {folder} has a metric that is code, which is not run because a file says so",
            got=measured_by,
            remedy=f"--metric {shlex.quote(measured_by)}, if you trust it",
        )
    if data is None and (code := [each for each in (settings["data"], settings["fit"]) if is_code(each)]):
        raise UsageError(
            f"the search in {folder} takes its data from code, which is not run because a file says so",
            got=code[0],
            remedy=f"--data {shlex.quote(settings['data'])}, if you trust it",
        )
    folder = folder.resolve()
    if not Path(settings["directory"]).is_dir():
        raise UsageError(
            f"the search in {folder} was begun in a folder that is not there", got=settings["directory"]
        )
    with chdir(settings["directory"]), progress() as bar:
        search = _search(folder, settings, bar)
        _run(search, trials, until)
    say(f"{folder} has {len(search.trials.all())} trials")
