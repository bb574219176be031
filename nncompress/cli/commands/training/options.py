"""The options that `train` and `cycle` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.declared import Parameters
from nncompress.cli.output_format import check_suffix
from nncompress.errors import UsageError

Validation = Annotated[
    str | None, typer.Option("--val", metavar="DATA", help="measured after every epoch; decides --patience")
]
Teacher = Annotated[
    str | None, typer.Option(metavar="MODEL", help="model whose answers are imitated, e.g. the original")
]
TeacherArch = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:FACTORY", help="what builds the network of a teacher's state_dict [default: --arch]"
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run that was killed")]
BEFORE: Parameters = {
    "data": (options.Data, None),
    "val": (Validation, None),
    "teacher": (Teacher, None),
    "teacher_arch": (TeacherArch, None),
}
AFTER: Parameters = {
    "resume": (Resume, False),
    "output": (options.Output, None),
    **{name: pair for name, pair in options.LOADING.items() if name != "data"},
    "report": (options.Report, None),
    "json": (options.Json, False),
}


def settings_of(kind: type[Any], values: dict[str, Any]) -> Any:
    """Take the options of the dataclass `kind` out of a command's values."""
    return kind(**{f.name: values.pop(f.name) for f in fields(kind)})


def check_files(command: str, files: Mapping[str, Any]) -> None:
    """Refuse what needs no look at the model: no data, an output that is no format."""
    check_suffix(files["output"])
    if files["data"] is None:
        raise UsageError(f"{command} needs data", remedy="add --data FILE.npz (or a folder of images)")
