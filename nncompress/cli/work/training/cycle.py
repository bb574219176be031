"""`cycle`: train and prune, until nothing is left to prune."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nncompress.cli.console import how_to_go_on, progress, say
from nncompress.cli.work.training.job import RESUMED, Job
from nncompress.cycles import Cycle, CycleSettings, run_cycles
from nncompress.errors import UsageError
from nncompress.report import training as report
from nncompress.train import TrainSettings


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
    records = Path(folder) if folder else Path(f"{job.opened.stem}.cycles")
    if os.path.exists(records / "state.json") and not resume:
        raise UsageError(
            f"{records} holds the cycles of an earlier run",
            remedy="--resume continues it; or name another --folder",
        )

    def done(each: Cycle) -> None:
        if not job.json:
            say(report.cycle_line(each))

    with how_to_go_on(lambda: records, RESUMED), progress() as bar:
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
