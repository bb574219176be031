"""`train`: one run, its checkpoint and its log."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nncompress.cli.console import how_to_go_on, progress, say
from nncompress.cli.work.training.job import RESUMED, Job
from nncompress.errors import OutputError, UsageError
from nncompress.files.targets import check_chosen, check_target
from nncompress.report.training import epochs
from nncompress.train import GrowSettings, TrainSettings, process_group, train
from nncompress.train.loop import is_log


def run(
    settings: TrainSettings,
    growth: GrowSettings,
    model: str | None,
    *,
    resume: bool,
    log: str | None,
    **files: Any,
) -> None:
    """Train, in one process or as one of several, and write the result in the first of them."""
    job = Job.open("train", model, **files)
    checkpoint = Path(f"{job.target}.checkpoint")
    check_target(checkpoint, (*job.sources, job.target))
    check_checkpoint(checkpoint, resume)
    epochs_file = Path(log or f"{job.target}.jsonl")
    check_target(epochs_file, (*job.sources, job.target, checkpoint))
    if epochs_file.resolve() in (job.target.resolve(), checkpoint.resolve()):
        raise OutputError(f"--log {epochs_file} is written by this training, too", remedy="give another name")
    if log is None:
        check_chosen(epochs_file, is_log, "--log")
    with how_to_go_on(lambda: checkpoint, RESUMED), process_group() as group, progress() as bar:
        trained, result = train(
            job.opened.model,
            job.data,
            settings,
            validation=job.validation,
            teacher=job.teacher,
            growth=growth,
            checkpoint=checkpoint,
            resume=resume,
            log=epochs_file,
            progress=bar,
            notice=say,
        )
        if group.main:
            job.finish(trained, result, epochs(result), bar, spent=checkpoint)


def check_checkpoint(checkpoint: Path, resume: bool) -> None:
    """A checkpoint is the work of hours: it is neither overwritten nor missed in silence.

    Raises:
        UsageError: there is one and --resume was not given.
    """
    if checkpoint.exists() and not resume:
        raise UsageError(
            f"{checkpoint} is left from a run that did not end",
            remedy="--resume continues it; or delete it to start over",
        )
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # else another machine may have it
    if resume and alone and not checkpoint.exists():
        say(f"no {checkpoint} to resume: starting from the beginning")
