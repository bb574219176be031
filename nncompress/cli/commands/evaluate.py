"""`eval`: how good a model still is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from nncompress.cli import options
from nncompress.cli.declared import taking
from nncompress.cli.later import later

work = later("evaluate:evaluate")

_HELP = """Measure models on --data: top-1 and top-5, RMSE, reconstruction error, or any --metric.

Further models are compared with the first, sample by sample: the difference in top-1 with its 95 % interval;
and without labels, how often the answers agree, the cosine, and the signal-to-noise ratio (SQNR).

Example:  nncompress eval model.pt2 small.onnx --data val.npz
"""


def register(app: typer.Typer) -> None:
    app.command("eval", help=_HELP)(evaluate)


@taking(options.LOADING)
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="left out: the original and the newest result here"),
    ] = None,
    task: Annotated[
        Literal["auto", "classification", "regression", "reconstruction"],
        typer.Option(
            metavar="TASK",
            help="what the labels are; auto tells from their type and shape (auto, classification, "
            "regression, reconstruction)",
        ),
    ] = "auto",
    metric: options.Metric = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="run every model there, exported for it [default: graphs in torch]"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="samples per call")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="use this many samples [default: all]")] = None,
    report: options.Report = None,
    json: options.Json = False,
    **loading: Any,
) -> None:
    work(
        models,
        task,
        metric,
        target=target,
        batch=batch,
        limit=limit,
        report=report,
        json=json,
        loading=loading,
    )
