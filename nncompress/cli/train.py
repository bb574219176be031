"""`train`: the options are those of `nncompress.train.TrainSettings`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.declared import declared, with_parameters
from nncompress.errors import UsageError
from nncompress.options import Options
from nncompress.train import TrainSettings

_HELP = """Train a model on --data: from scratch, as fine-tuning, or (--teacher) as distillation.

Weights that prune set to zero stay zero. The run is kept in FILE.checkpoint after every epoch and minute;
--resume continues a killed run to the same result. Several processes: torchrun -m nncompress train ...

Example:  nncompress train pruned.pt2 --data train.npz --val val.npz --teacher model.pt2 --epochs 5
"""

Validation = Annotated[
    str | None, typer.Option("--val", metavar="DATA", help="measured after every epoch; decides --patience")
]
Teacher = Annotated[
    str | None, typer.Option(metavar="MODEL", help="model whose answers are imitated, e.g. the original")
]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run whose checkpoint is there")]
Log = Annotated[
    str | None, typer.Option(metavar="FILE", help="JSON lines, one per epoch [default: OUTPUT.jsonl]")
]


def register(app: typer.Typer) -> None:
    app.command("train", help=_HELP)(command(TrainSettings, _train))


def command(settings: type[Options], run: Any) -> Any:
    """A command with MODEL, the given options, and those of files and data."""
    parameters = {
        "model": (options.ModelArgument, None),
        **declared(settings),
        "data": (options.Data, None),
        "val": (Validation, None),
        "teacher": (Teacher, None),
        "resume": (Resume, False),
        "log": (Log, None),
        "output": (options.Output, None),
        "normalize": (options.Normalize, None),
        "arch": (options.Arch, None),
        "input": (options.Input, None),
        "trust_pickle": (options.TrustPickle, False),
        "json": (options.Json, False),
    }
    own = [f.name for f in fields(settings)]

    def called(**values: Any) -> None:
        chosen = settings(**{name: values.pop(name) for name in own})
        run(chosen, values.pop("model"), **values)

    return with_parameters(called, parameters, settings.name)


def _train(
    settings: TrainSettings,
    model: str | None,
    *,
    data: str | None,
    val: str | None,
    teacher: str | None,
    resume: bool,
    log: str | None,
    output: str | None,
    normalize: str | None,
    arch: str | None,
    input: str | None,
    trust_pickle: bool,
    json: bool,
) -> None:
    from nncompress.cli.compress import check_suffix

    check_suffix(output)
    if data is None:
        raise UsageError("train needs data", remedy="add --data FILE.npz (or a folder of images)")
    opened = options.open_model(
        model, arch=arch, input=input, data=data, normalize=normalize, trust_pickle=trust_pickle
    )
    from nncompress import api, export
    from nncompress.report.tables import written
    from nncompress.report.training import epochs
    from nncompress.train import process_group, train

    target = Path(output) if output else options.default_output(opened, "train")
    checkpoint = Path(f"{target}.checkpoint")
    check_checkpoint(checkpoint, resume)
    records = api.dataset(data, opened.model, normalize)
    held_out = None if val is None else api.dataset(val, opened.model, normalize)
    taught_by = None if teacher is None else api.load(teacher, trust_pickle=trust_pickle, notice=say)
    with process_group() as group, progress() as bar:
        trained, result = train(
            opened.model,
            records,
            settings,
            validation=held_out,
            teacher=taught_by,
            checkpoint=checkpoint,
            resume=resume,
            log=Path(log or f"{target}.jsonl"),
            progress=bar,
        )
        if not group.main:
            return
        bar.step(f"writing {target.name}", 0, None)
        report = export.write(trained, target, protect=(opened.path, opened.original))
        checkpoint.unlink(missing_ok=True)
        options.remember(opened, target, opened.model, trained)
    if json:
        print_json({**result.to_json(), "output": report.to_json()})
    else:
        show(epochs(result))
        show(written(report))


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
    if resume and not checkpoint.exists():
        say(f"no {checkpoint} to resume: starting from the beginning")
