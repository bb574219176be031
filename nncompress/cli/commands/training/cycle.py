"""`cycle`: the options are those of `CycleSettings` and `TrainSettings`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.commands.training.options import AFTER, BEFORE, check_files, settings_of
from nncompress.cli.declared import declared, with_parameters
from nncompress.cli.later import later
from nncompress.cycles import CycleSettings
from nncompress.train import TrainSettings

work = later("training.cycle:run")

_HELP = """Train and prune in cycles, until nothing is left to prune.

Each cycle trains for up to --epochs, takes statistics on --data, and removes what --criterion finds.
Cycles are recorded in FOLDER/cycles.jsonl; --resume continues a killed run.

Example:  nncompress cycle model.pt2 --data train.npz --outliers 2 --l2 0.01 --max-cycles 20
"""

_Folder = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="where cycles are recorded [default: MODEL.cycles]")
]


def register(app: typer.Typer) -> None:
    parameters = {
        "model": (options.ModelArgument, None),
        **declared(CycleSettings, "Cycles"),
        **declared(TrainSettings, "Training"),
        **BEFORE,
        "folder": (_Folder, None),
        **AFTER,
    }

    def called(**values: Any) -> None:
        check_files("cycle", values)
        work(settings_of(CycleSettings, values), settings_of(TrainSettings, values), **values)

    app.command("cycle", help=_HELP)(with_parameters(called, parameters, "cycle"))
