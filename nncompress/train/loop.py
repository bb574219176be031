"""The one loop that trains any `Model`: from scratch, as fine-tuning, or as distillation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nncompress.analysis.answer import PROBED
from nncompress.data import Dataset
from nncompress.errors import OutputError, VerificationError
from nncompress.files.atomic import replacing, why_and_remedy
from nncompress.files.bounded_text import Unreadable, check_regular, parse_json
from nncompress.ir import Model
from nncompress.ir.graph.verify import outputs_checked
from nncompress.progress import NullProgress, Progress
from nncompress.train import checkpoint as checkpoints
from nncompress.train.growth.settings import GrowSettings
from nncompress.train.run import Run
from nncompress.train.settings import TrainSettings
from nncompress.train.state import TrainResult

CHECKPOINT_SECONDS = 60.0


def train(
    model: Model,
    dataset: Dataset,
    settings: TrainSettings,
    *,
    validation: Dataset | None = None,
    teacher: Model | None = None,
    growth: GrowSettings | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    log: Path | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> tuple[Model, TrainResult]:
    """Train a copy of `model` and return it; of a quantized one, quantized on the same grids.

    Args:
        validation: measured after every epoch; decides when to stop, with `settings.patience`.
        teacher: its outputs are imitated (`teacher_weight`), and its layers (`match`).
        growth: when, where and by how much the model grows meanwhile.
        checkpoint: written after every epoch and every `checkpoint_seconds`, by the first process.
        resume: continue from `checkpoint` if it is there; the result is bit for bit that of a run that was
            never interrupted, on the same number of threads and processes.
        log: JSON lines, one per epoch.
        notice: called with which loss is minimised, and why.

    Raises:
        UnsupportedError: the model is quantized with grids that are found while it runs.
        DataError: labels are missing or do not fit the outputs; names the sample.
        UsageError: settings that do not fit the model, or a checkpoint of another run.
        VerificationError: the loss, or an output of the trained model, is not finite.
        DeviceError: the device is not there.
    """
    run = Run(model, dataset, settings, validation, teacher, progress or NullProgress(), growth)
    identity = run.identity()
    if resume and checkpoint is not None:
        kept = checkpoints.load(checkpoint, identity) if checkpoint.exists() else None
        with checkpoints.readable(checkpoint):
            kept = run.group.furthest(kept, -1 if kept is None else kept["step"])
            if kept is not None:
                run.restore(kept)
    if log is not None and run.group.main and (run.state.rows or log.exists()):
        with replacing(log) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in run.state.rows), encoding="utf-8")

    def keep() -> None:
        if checkpoint is not None and run.group.main:
            checkpoints.save(checkpoint, identity, run.snapshot())

    with private_randomness(run.device):
        chosen = run.begin()
        if notice is not None and run.group.main:
            notice(chosen)
        saved = started = time.monotonic()
        before = run.state.seconds
        while not run.finished():
            for batch in run.rest_of_epoch():
                run.step(batch)
                run.state.seconds = before + time.monotonic() - started
                if time.monotonic() - saved > checkpoint_seconds:
                    keep()
                    saved = time.monotonic()
            row = run.end_epoch()
            if log is not None and run.group.main:
                _log(log, row)
            keep()
    trained, result = run.result()
    _check_outputs(trained, model, dataset, settings)
    return trained, result


def _log(file: Path, row: dict[str, Any]) -> None:
    """Add a line.

    Raises:
        OutputError: the file takes no more.
    """
    try:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(row) + "\n")
    except OSError as error:
        reason, remedy = why_and_remedy(error, file.parent)
        raise OutputError(f"cannot write {file}", got=reason, remedy=f"{remedy}; --resume goes on") from error


def _check_outputs(trained: Model, original: Model, dataset: Dataset, settings: TrainSettings) -> None:
    """The loss of an epoch says nothing of the weights that its last step left.

    Raises:
        VerificationError: an output has NaN or an infinity, where the original's has none.
    """
    for batch in dataset.batches(PROBED, limit=dataset.fixed_batch or PROBED):
        with torch.no_grad():
            before = original.outputs_of(*(x.clone() for x in batch.inputs))
        try:
            outputs_checked(trained, batch.inputs, "train", before)
        except VerificationError as error:
            raise VerificationError(
                "training diverged in its last steps",
                got=error.what,
                remedy=f"a smaller --lr than {settings.lr:g}, --warmup 1, or --clip 1",
            ) from error
        return


def is_log(path: Path) -> bool:
    """Whether a file that is there already is the log of a run."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            first = file.readline(1 << 20)
        return not first or {"epoch", "loss"} <= set(parse_json(first))
    except (OSError, Unreadable, TypeError):
        return False


@contextmanager
def private_randomness(device: torch.device) -> Iterator[None]:
    """The caller's random state is what it was afterwards."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
