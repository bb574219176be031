"""`optimize`: the pipeline found, with a promise."""

from __future__ import annotations

import time as clock
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nncompress.cli import options
from nncompress.cli.declared import taking
from nncompress.cli.later import later
from nncompress.cli.output_format import check_output
from nncompress.cli.quantities import seconds, size
from nncompress.errors import UsageError

join_search = later("search.optimize:join")
find = later("search.optimize:find")

_HELP = """Find the pipeline that makes the model fastest (or smallest) and loses at most --max-drop.

prune-nodes, factorize, reduce and quantize, alone, together and with strengths per layer, measured on one
half of --data. What is promised of the result is measured on the other half, which the search has not seen:
the metric loses at most --max-drop with 95 % confidence. Where the samples are too few to say so, the exit
code is 13, and it is said how many it would take. Without labels it is how often the original answers alike.

Ctrl-C or --time end the search with the best so far; the same command goes on. Any number of workers help:
nncompress optimize --join FOLDER.

Example:  nncompress optimize model.pt2 --data val.npz --max-drop 0.5 --time 20m -o small.onnx
"""

_Drop = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="POINTS",
        help="of the metric to lose at most, with 95 % confidence: points of a share, else its own unit",
    ),
]
_Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="as in eval; or agreement (the original's answers) or error (of the outputs): they need no "
        "labels [default: the labels': top1, rmse]",
    ),
]
_Latency = Annotated[
    str | None,
    typer.Option(metavar="5ms", help="per sample, in --target on this machine, one thread"),
]
_Size = Annotated[str | None, typer.Option(metavar="1MB|30%", help="of the weights; 30%: of what they are")]
_Goal = Annotated[
    Literal["latency", "macs", "size"], typer.Option(help="what is made least under the bounds")
]
_Trials = Annotated[int, typer.Option(min=1, help="recipes to try at most")]
_Time = Annotated[str, typer.Option(metavar="30m", help="begin no trial after this long")]
_Fit = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="what passes are fitted to [default: the half that chooses]"),
]
_Finetune = Annotated[
    str | None,
    typer.Option(
        metavar="MIN",
        help="then train cuts that are too strong without it for so many minutes (or 90s, 2h): distillation "
        "from the original, on --fit",
    ),
]
_Crop = Annotated[
    int, typer.Option(min=0, help="with --finetune: shift images by up to so many pixels, as train does")
]
_Flip = Annotated[
    bool, typer.Option("--flip", help="with --finetune: mirror half of the images, as train does")
]
_EndsIn = Annotated[
    Literal["float32", "bf16", "int8"] | None,
    typer.Option(
        "--for",
        metavar="PRECISION",
        help="in which the result will run, float32, bf16 or int8: floats are timed in it, and nothing is "
        "quantized; int8: everything is [default: whichever is better]",
    ),
]
_Folder = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="where the search is kept [default: MODEL.optimize]")
]
_Join = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="help a search that another process has begun there")
]


_HELPING = ("model", "join", "trials", "time", "data", "metric")  # what a worker may be told


def register(app: typer.Typer) -> None:
    app.command("optimize", help=_HELP)(optimize)


@taking(options.LOADING)
def optimize(
    context: typer.Context,
    model: options.ModelArgument = None,
    max_drop: _Drop = None,
    metric: _Metric = None,
    max_latency: _Latency = None,
    max_size: _Size = None,
    goal: _Goal = "latency",
    trials: _Trials = 60,
    time: _Time = "30m",
    fit: _Fit = None,
    finetune: _Finetune = None,
    crop: _Crop = 0,
    flip: _Flip = False,
    folder: _Folder = None,
    join: _Join = None,
    target: options.TargetOption = None,
    for_: _EndsIn = None,
    output: options.Output = None,
    no_samples: options.NoSamples = False,
    limit: options.Limit = 512,
    seed: options.Seed = 0,
    report: options.Report = None,
    json: options.Json = False,
    **loading: Any,
) -> None:
    until = clock.monotonic() + seconds(time, "--time")
    if join is not None:
        _only_helps(context)
        join_search(Path(join), model, loading["data"], metric, trials, until)
        return
    images = {"crop": crop, "flip": flip}
    training = None if finetune is None else {"seconds": _minutes(finetune), **images}
    if training is None and any(images.values()):
        raise UsageError(
            "--crop and --flip are of a training", remedy="add --finetune 30m, or leave them out"
        )
    if training is not None and max_drop is None:
        raise UsageError("--finetune trains what loses more than --max-drop", remedy="add --max-drop 0.5")
    if max_size is not None:
        size(max_size, "--max-size", 1.0)  # refused before the model is opened
    asked: dict[str, Any] = {
        "latency": None if max_latency is None else seconds(max_latency, "--max-latency"),
        "goal": goal,
        "ends_in": "bfloat16" if for_ == "bf16" else for_,
    }
    if max_drop is None and max_size is None and asked["latency"] is None:
        raise UsageError(
            "optimize: nothing is asked for", remedy="--max-drop 0.5, --max-size or --max-latency"
        )
    clock_in = asked["latency"] is not None or (max_drop is not None and goal == "latency")
    data = loading["data"]
    if data is None:
        raise UsageError("optimize needs data", remedy="add --data FILE.npz (or a folder of images)")
    check_output(output, target)
    find(
        model,
        asked,
        metric=metric,
        max_drop=max_drop,
        max_size=max_size,
        clock_in=clock_in,
        fit=fit,
        trials=trials,
        until=until,
        training=training,
        folder=folder,
        target=target,
        output=output,
        no_samples=no_samples,
        limit=limit,
        seed=seed,
        report=report,
        json=json,
        loading=loading,
    )


def _only_helps(context: typer.Context) -> None:
    """Refuse what --join has from the folder, or what only who began the search does.

    Raises:
        UsageError: naming one that was given.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in _HELPING:
            raise UsageError(
                f"optimize --join goes without {max(parameter.opts, key=len)}",
                expected="--trials, --time; and --data and --metric where these are code",
                remedy="leave it out: how is said in the folder, and whoever began the search ends it",
            )


def _minutes(text: str) -> float:
    """Seconds; a bare number is minutes.

    Raises:
        UsageError: it is no duration.
    """
    bare = text.strip().replace(".", "", 1).isdecimal()
    return seconds(f"{text.strip()}m" if bare else text, "--finetune")
