"""`reproduce`: a study of the papers, run anew."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.work import model_files
from nncompress.errors import UsageError
from nncompress.files.folders import make_folder
from nncompress.report.studies import report
from nncompress.studies import STUDIES, Request, check_plot
from nncompress.studies import plot as draw
from nncompress.studies.study import Drawable


def reproduce(
    name: str,
    runs: int | None,
    *,
    quick: bool,
    epochs: int | None,
    keep: str | None,
    model: str | None,
    data: str | None,
    plot: str | None,
    seed: int,
    json: bool,
) -> None:
    """See the options of the command.

    Raises:
        UsageError: there is no such study, or it does not take an option.
    """
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
