"""`optimize`: the pipeline found, with a promise."""

from __future__ import annotations

import json as json_format
import os
import time as clock
from contextlib import chdir
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nncompress.cli import options
from nncompress.cli.compress import check_output, written_for
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.declared import taking
from nncompress.cli.quantities import bytes_, seconds
from nncompress.errors import PromiseError, UsageError

_HELP = """Find the pipeline that makes the model fastest (or smallest) and loses at most --max-drop points.

prune-nodes, factorize and quantize, alone, together and with strengths per layer, measured on one half of
--data. What is promised of the result is measured on the other half, which the search has not seen: top-1
drops by at most --max-drop points with 95 % confidence. Where the samples are too few to say so, the exit
code is 13, and it is said how many it would take.

Ctrl-C or --time end the search with the best so far; the same command goes on. Any number of workers help:
nncompress optimize --join FOLDER.

Example:  nncompress optimize model.pt2 --data val.npz --max-drop 0.5 --time 20m -o small.onnx
"""

_Drop = Annotated[
    float | None,
    typer.Option(min=0, max=100, metavar="POINTS", help="top-1 to lose at most, with 95 % confidence"),
]
_Latency = Annotated[
    str | None,
    typer.Option(metavar="5ms", help="per sample, in --target on this machine, one thread"),
]
_Size = Annotated[str | None, typer.Option(metavar="1MB", help="of the weights")]
_Goal = Annotated[
    Literal["latency", "macs", "size"], typer.Option(help="what is made least under the bounds")
]
_Trials = Annotated[int, typer.Option(min=1, help="recipes to try at most")]
_Time = Annotated[str, typer.Option(metavar="30m", help="begin no trial after this long")]
_Fit = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="what passes are fitted to [default: the half that chooses]"),
]
_Folder = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="where the search is kept [default: MODEL.optimize]")
]
_Join = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="help a search that another process has begun there")
]


def register(app: typer.Typer) -> None:
    app.command("optimize", help=_HELP)(optimize)


@taking(options.LOADING)
def optimize(
    model: options.ModelArgument = None,
    max_drop: _Drop = None,
    max_latency: _Latency = None,
    max_size: _Size = None,
    goal: _Goal = "latency",
    trials: _Trials = 60,
    time: _Time = "30m",
    fit: _Fit = None,
    folder: _Folder = None,
    join: _Join = None,
    target: options.TargetOption = None,
    output: options.Output = None,
    limit: options.Limit = 512,
    seed: options.Seed = 0,
    json: options.Json = False,
    **loading: Any,
) -> None:
    until = clock.monotonic() + seconds(time, "--time")
    if join is not None:
        _help(Path(join), model, trials, until)
        return
    drop = None if max_drop is None else max_drop / 100
    asked: dict[str, Any] = {
        "drop": drop,
        "size": None if max_size is None else bytes_(max_size, "--max-size"),
        "latency": None if max_latency is None else seconds(max_latency, "--max-latency"),
        "goal": goal,
    }
    if drop is None and asked["size"] is None and asked["latency"] is None:
        raise UsageError(
            "optimize: nothing is asked for", remedy="--max-drop 0.5, --max-size or --max-latency"
        )
    clock_in = asked["latency"] is not None or (drop is not None and goal == "latency")
    data = loading["data"]
    if data is None:
        raise UsageError("optimize needs labelled data", remedy="add --data FILE.npz (or a folder of images)")
    check_output(output, target)
    opened = options.open_model(model, **loading)
    from nncompress import api, export
    from nncompress.bench.target_speed import clocked
    from nncompress.files.folders import make_folder

    reads = options.read_by(opened, data, fit, loading["arch"])
    result = options.output_for(output, options.default_output(opened, "optimize"), reads)
    recipe_file = result.with_suffix(".toml")
    options.output_for(str(recipe_file), recipe_file, reads)
    api.dataset(data, opened.model, loading["normalize"], say).require_labels("optimize")
    if clock_in:
        where = clocked(target)
        asked["target"] = where.name
        chosen = "" if target else ", the fastest here (--target names another)"
        say(f"latencies are measured in {where.runtime_name}{chosen}")
    kept = make_folder(Path(folder) if folder else Path(f"{opened.path.stem}.optimize"))
    settings = {
        "schema": 1,
        "kind": "search",
        "directory": os.getcwd(),
        "data": data,
        "fit": fit or _half(data, 1),
        "normalize": loading["normalize"],
        "limit": limit,
        "seed": seed,
        "bounds": asked,
    }
    if not (kept / "original.pt2").exists():
        export.write(opened.model, kept / "original.pt2")
        _write(kept / "search.json", settings)
    say(f"workers that help:  nncompress optimize --join {kept}")
    say(
        f"as a SLURM array:   #SBATCH --array=1-8\n                    srun nncompress optimize --join {kept}"
    )
    with progress() as bar:
        search = _search(kept, settings, bar)
        stopped = _run(search, trials, until)
        search.measure_here()
        unseen = api.dataset(_half(data, 2), search.original, loading["normalize"])
        best, made, said = search.promise(unseen)
        from nncompress.recipe import recipe_text
        from nncompress.report import search as report
        from nncompress.search.optimize import recipe_of

        row = search.trials.get(best) or {}
        recipe = recipe_of(row)
        bar.step(f"writing {result.name}", 0, None)
        file = export.write(made, result, protect=reads, target=written_for(result, target))
        how = {
            f"--{key.replace('_', '-')}": loading[key]
            for key in ("normalize", "arch", "weights_key", "input")
        }
        said_how = "".join(f" {flag} '{value}'" for flag, value in how.items() if value)
        said_how += " --trust-pickle" if loading["trust_pickle"] else ""
        for_target = f" --target {target}" if target else ""
        command = (
            f"nncompress compress {opened.path} --recipe {recipe_file} --data '{settings['fit']}'{said_how} "
            f"--limit {limit} --seed {seed}{for_target} -o {result}"
        )
        _write_text(recipe_file, f"# {command}\n\n{recipe_text(recipe)}", reads)
        options.remember(opened, result, opened.model, made)
        from nncompress.runtimes import OPENERS

        if result.suffix.lower() in OPENERS:  # what is promised is what was written
            said = search.promised(result, unseen, said.looks)
    count = len(search.trials.all())
    if json:
        print_json(
            {
                "schema": 1,
                "kind": "optimize",
                "best": row,
                "trials": search.trials.all(),
                "promise": said.to_json(),
                "output": file.to_json(),
                "recipe": str(recipe_file),
                "command": command,
                "stopped": stopped,
            }
        )
    else:
        from nncompress.report.tables import written

        show(f"best of {count} trials{' so far' if stopped else ''}: {report.trial(row, count)}")
        show(written(file))
        show(f"wrote {recipe_file}: {command}")
        if said.kept:
            show(report.promise(said))
    if not said.kept:
        raise PromiseError(f"optimize: {report.promise(said)}", remedy="more samples, or a larger --max-drop")


def _half(data: str, number: int) -> str:
    return f"{data}{'&' if '?' in data else '?'}half={number}"


def _search(folder: Path, settings: dict[str, Any], bar: Any) -> Any:
    """The search in a folder, opened by what its `search.json` says."""
    from nncompress import api
    from nncompress.passes import Context
    from nncompress.search.optimize import Bounds, Search

    original = api.load(folder / "original.pt2")
    normalize = settings["normalize"]
    fitted = api.dataset(settings["fit"], original, normalize)
    selection = api.dataset(_half(settings["data"], 1), original, normalize)
    context = Context(data=fitted, seed=settings["seed"], limit=settings["limit"], progress=bar)
    return Search(folder, original, selection, context, Bounds(**settings["bounds"]))


def _run(search: Any, trials: int, until: float) -> bool:
    """Search; True where it was stopped before all was tried."""
    from nncompress.report import search as report

    def told(row: dict[str, Any]) -> None:
        say(report.trial(row, len(search.trials.all())))

    try:
        search.run(trials, until, told)
    except KeyboardInterrupt:
        if not search.trials.all():  # nothing to take: an interrupt like any other
            raise
        say("interrupted: the best so far is taken; the same command goes on searching")
        return True
    return clock.monotonic() >= until


def _help(folder: Path, model: str | None, trials: int, until: float) -> None:
    """Be a worker of a search."""
    from nncompress.files.bounded_text import Unreadable, read_json

    if model is not None:
        raise UsageError("optimize --join takes its model from the folder", got=model, remedy="leave it out")
    try:
        settings = read_json(folder / "search.json")
        if settings["kind"] != "search":
            raise KeyError("kind")
        directory = settings["directory"]
    except (Unreadable, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder} holds no search",
            got=str(error),
            remedy=f"nncompress optimize model.pt2 --data val.npz --max-drop 0.5 --folder {folder}",
        ) from error
    folder = folder.resolve()
    with chdir(directory), progress() as bar:
        search = _search(folder, settings, bar)
        _run(search, trials, until)
    say(f"{folder} has {len(search.trials.all())} trials")


def _write(path: Path, value: Any) -> None:
    _write_text(path, json_format.dumps(value, indent=1), ())


def _write_text(path: Path, text: str, protect: tuple[Path, ...]) -> None:
    from nncompress.files.atomic import replacing

    with replacing(path, protect) as temporary:
        temporary.write_text(text, encoding="utf-8")
