"""`reproduce`: the papers' experiments, their numbers beside ours."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, cast

import typer

from nncompress.cli import model_files, options
from nncompress.cli.console import print_json, progress, say, show
from nncompress.errors import UsageError
from nncompress.files.folders import make_folder
from nncompress.report.studies import report

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
    from nncompress.studies import STUDIES, Request, check_plot
    from nncompress.studies import plot as draw
    from nncompress.studies.study import Drawable

    if name not in STUDIES:
        raise UsageError("reproduce: no such study", got=name, expected=", ".join(STUDIES))
    study = STUDIES[name]
    values = {"plot": plot, "data": data, "runs": runs, "epochs": epochs, "keep": keep, "model": model}
    study.refuse_unused([*(k for k, v in values.items() if v is not None), *(["seed"] if seed else [])])
    if plot is not None:
        check_plot(Path(plot), model_files.read_by(None, data, model))
    with _folder(keep) as folder, progress() as bar:
        request = Request(Path(folder), runs, epochs, quick, data, model, seed, bar, say)
        result = study.run(request)
    if json:
        print_json(result.to_json())
    else:
        show(report(result))
    if plot is not None:  # last: what was found is on the screen if the disk is full
        draw(cast(Drawable, result), Path(plot))


def _folder(keep: str | None) -> AbstractContextManager[str]:
    """Where the study's files go.

    Raises:
        OutputError: the folder cannot be made.
    """
    if keep is None:
        return tempfile.TemporaryDirectory()

    return nullcontext(str(make_folder(keep)))
