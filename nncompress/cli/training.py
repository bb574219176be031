"""What `train` and `cycle` share: a model and its data come in, a trained model goes out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.compress import check_suffix
from nncompress.cli.console import print_json, show
from nncompress.cli.declared import Parameters
from nncompress.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nncompress.data import Dataset
    from nncompress.ir import Model
    from nncompress.progress import Progress
    from nncompress.results import Result

Validation = Annotated[
    str | None, typer.Option("--val", metavar="DATA", help="measured after every epoch; decides --patience")
]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run that was killed")]
BEFORE: Parameters = {"data": (options.Data, None), "val": (Validation, None)}
AFTER: Parameters = {
    "resume": (Resume, False),
    "output": (options.Output, None),
    "normalize": (options.Normalize, None),
    "arch": (options.Arch, None),
    "input": (options.Input, None),
    "trust_pickle": (options.TrustPickle, False),
    "json": (options.Json, False),
}


@dataclass(frozen=True)
class Job:
    """What is trained on what, and where it goes."""

    opened: options.Opened
    data: Dataset
    validation: Dataset | None
    target: Path
    json: bool

    @classmethod
    def open(
        cls,
        command: str,
        model: str | None,
        *,
        data: str | None,
        val: str | None,
        output: str | None,
        normalize: str | None,
        arch: str | None,
        input: str | None,
        trust_pickle: bool,
        json: bool,
    ) -> Job:
        """Open the model and its data; `command` names the default output.

        Raises:
            NNCompressError: one of them cannot be, or there is no data.
        """
        check_suffix(output)
        if data is None:
            raise UsageError(f"{command} needs data", remedy="add --data FILE.npz (or a folder of images)")
        opened = options.open_model(
            model, arch=arch, input=input, data=data, normalize=normalize, trust_pickle=trust_pickle
        )
        from nncompress import api

        records = api.dataset(data, opened.model, normalize)
        held_out = None if val is None else api.dataset(val, opened.model, normalize)
        target = Path(output) if output else options.default_output(opened, command)
        return cls(opened, records, held_out, target, json)

    def finish(
        self,
        trained: Model,
        result: Result,
        table: RenderableType,
        progress: Progress,
        spent: Path | None = None,
    ) -> None:
        """Write the model, remove `spent` (kept in case it came to nothing), and print what was done."""
        from nncompress import export
        from nncompress.report.tables import written

        progress.step(f"writing {self.target.name}", 0, None)
        file = export.write(trained, self.target, protect=(self.opened.path, self.opened.original))
        options.remember(self.opened, self.target, self.opened.model, trained)
        if spent is not None:
            spent.unlink(missing_ok=True)
        if self.json:
            print_json({**result.to_json(), "output": file.to_json()})
        else:
            show(table)
            show(written(file))


def settings_of(kind: type[Any], values: dict[str, Any]) -> Any:
    """Take the options of the dataclass `kind` out of a command's values."""
    return kind(**{f.name: values.pop(f.name) for f in fields(kind)})
