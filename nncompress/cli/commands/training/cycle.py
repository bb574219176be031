"""`cycle`: the options are those of `CycleSettings` and `TrainSettings`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.commands.training.job import AFTER, BEFORE, Job, how_to_go_on, settings_of
from nncompress.cli.console import progress, say
from nncompress.cli.declared import declared, with_parameters
from nncompress.cycles import CycleSettings
from nncompress.errors import UsageError
from nncompress.report import training as report
from nncompress.train import TrainSettings

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
        run(settings_of(CycleSettings, values), settings_of(TrainSettings, values), **values)

    app.command("cycle", help=_HELP)(with_parameters(called, parameters, "cycle"))


def run(
    cycling: CycleSettings,
    training: TrainSettings,
    model: str | None,
    *,
    folder: str | None,
    resume: bool,
    **files: Any,
) -> None:
    """Train and prune in cycles, and write what is left."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(
            "cycle runs in one process",
            got=f"{os.environ['WORLD_SIZE']} by torchrun",
            remedy="without torchrun; or torchrun -m nncompress train, and prune-nodes between",
        )
    job = Job.open("cycle", model, **files)
    from nncompress.cycles import Cycle, run_cycles

    records = Path(folder) if folder else Path(f"{job.opened.stem}.cycles")
    if os.path.exists(records / "state.json") and not resume:
        raise UsageError(
            f"{records} holds the cycles of an earlier run",
            remedy="--resume continues it; or name another --folder",
        )

    def done(each: Cycle) -> None:
        if not job.json:
            say(report.cycle_line(each))

    with how_to_go_on(records), progress() as bar:
        pruned, result = run_cycles(
            job.opened.model,
            job.data,
            training,
            cycling,
            folder=records,
            validation=job.validation,
            teacher=job.teacher,
            resume=resume,
            done=done,
            progress=bar,
            notice=say,
        )
        job.finish(pruned, result, report.cycles(result), bar)
