"""`train`: the options are those of `nncompress.train.TrainSettings`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.commands.training.options import AFTER, BEFORE, check_files, settings_of
from nncompress.cli.declared import declared, with_parameters
from nncompress.cli.later import later
from nncompress.train import GrowSettings, TrainSettings

work = later("training.train:run")

_HELP = """Train a model on --data: from scratch, as fine-tuning, or (--teacher) as distillation.

Weights that prune set to zero stay zero; a quantized model trains with its rounding and stays quantized.
The run is kept in FILE.checkpoint after every epoch and minute; --resume continues a killed run to the same
result. Several processes: torchrun -m nncompress train ...
With --grow the model gets nodes whenever the loss stops falling, up to a bound.

Example:  nncompress train pruned.pt2 --data train.npz --val val.npz --teacher model.pt2 --epochs 5
"""

_Log = Annotated[
    str | None, typer.Option(metavar="FILE", help="JSON lines, one per epoch [default: OUTPUT.jsonl]")
]


def register(app: typer.Typer) -> None:
    parameters = {
        "model": (options.ModelArgument, None),
        **declared(TrainSettings),
        **declared(GrowSettings, "Growth"),
        **BEFORE,
        "log": (_Log, None),
        **AFTER,
    }

    def called(**values: Any) -> None:
        check_files("train", values)
        work(settings_of(TrainSettings, values), settings_of(GrowSettings, values), **values)

    app.command("train", help=_HELP)(with_parameters(called, parameters, "train"))
