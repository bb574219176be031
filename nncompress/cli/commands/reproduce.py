"""`reproduce`: the papers' experiments, their numbers beside ours."""

from __future__ import annotations

from typing import Annotated

import typer

from nncompress.cli import options
from nncompress.cli.later import later

work = later("reproduce:reproduce")

_HELP = """Run an experiment of the papers anew; the paper's figures stand beside ours, called so.

summation, autoencoder: prune in cycles down to the fewest nodes.

convolution-alternatives, small-model, sharesnet: train the papers' networks side by side.

sine, mnist-growth, cifar100-growth: networks that grow while they train.

approximation, quantization: compress the small model, or your own --model.

Example:  nncompress reproduce summation --runs 10 --plot summation.png

Example:  nncompress reproduce small-model --data cifar10:DIR --epochs 12 --keep runs
"""


def register(app: typer.Typer) -> None:
    app.command("reproduce", help=_HELP)(reproduce)


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the study")],
    runs: Annotated[int | None, typer.Option(min=1, help="seeds [default: the study's own]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a small version, in a minute or two")] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="of training [default: the paper's, which takes hours]")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="keep what was trained here, and go on with what an earlier run left"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="approximation, quantization: study this one")
    ] = None,
    data: options.Data = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help=".png or .svg of the curves")] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    work(
        name,
        runs,
        quick=quick,
        epochs=epochs,
        keep=keep,
        model=model,
        data=data,
        plot=plot,
        seed=seed,
        json=json,
    )
