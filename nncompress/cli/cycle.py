"""`cycle`: the options are those of `CycleSettings` and `TrainSettings`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.declared import declared, with_parameters
from nncompress.cli.train import Resume, Validation
from nncompress.cycles import CycleSettings
from nncompress.errors import UsageError
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
        "data": (options.Data, None),
        "val": (Validation, None),
        "folder": (_Folder, None),
        "resume": (Resume, False),
        "output": (options.Output, None),
        "normalize": (options.Normalize, None),
        "arch": (options.Arch, None),
        "input": (options.Input, None),
        "trust_pickle": (options.TrustPickle, False),
        "json": (options.Json, False),
    }

    def called(**values: Any) -> None:
        cycling = CycleSettings(**{f.name: values.pop(f.name) for f in fields(CycleSettings)})
        training = TrainSettings(**{f.name: values.pop(f.name) for f in fields(TrainSettings)})
        cycle(cycling, training, values.pop("model"), **values)

    app.command("cycle", help=_HELP)(with_parameters(called, parameters, "cycle"))


def cycle(
    cycling: CycleSettings,
    training: TrainSettings,
    model: str | None,
    *,
    data: str | None,
    val: str | None,
    folder: str | None,
    resume: bool,
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
        raise UsageError("cycle needs data", remedy="add --data FILE.npz (or a folder of images)")
    opened = options.open_model(
        model, arch=arch, input=input, data=data, normalize=normalize, trust_pickle=trust_pickle
    )
    from nncompress import api, export
    from nncompress.cycles import Cycle, run_cycles
    from nncompress.report import training as report
    from nncompress.report.tables import written

    target = Path(output) if output else options.default_output(opened, "cycle")
    records = Path(folder) if folder else Path(f"{opened.path.stem}.cycles")
    if (records / "state.json").exists() and not resume:
        raise UsageError(
            f"{records} holds the cycles of an earlier run",
            remedy="--resume continues it; or name another --folder",
        )
    with progress() as bar:

        def done(each: Cycle) -> None:
            if not json:
                say(report.cycle_line(each))

        pruned, result = run_cycles(
            opened.model,
            api.dataset(data, opened.model, normalize),
            training,
            cycling,
            folder=records,
            validation=None if val is None else api.dataset(val, opened.model, normalize),
            resume=resume,
            done=done,
            progress=bar,
        )
        bar.step(f"writing {target.name}", 0, None)
        file = export.write(pruned, target, protect=(opened.path, opened.original))
        options.remember(opened, target, opened.model, pruned)
    if json:
        print_json({**result.to_json(), "output": file.to_json()})
    else:
        show(report.cycles(result))
        show(written(file))
