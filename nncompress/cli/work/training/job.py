"""What `train` and `cycle` share: a model and its data come in, a trained model goes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from nncompress import api, exporting
from nncompress.benchmarking.latency.int8_speed import int8_speed
from nncompress.cli.console import print_json, say, show
from nncompress.cli.work import model_files, report_file
from nncompress.cli.work.artifacts import CARRIED, needed_by
from nncompress.data import Dataset
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.stated_constants import with_its_own, with_remembered
from nncompress.progress import Progress
from nncompress.report.tables import written
from nncompress.results import Result

RESUMED = "has the run until its last epoch or minute: --resume continues it"


@dataclass(frozen=True)
class Job:
    """What is trained on what, and where it goes.

    Attributes:
        sources: what is read, which nothing must overwrite.
    """

    opened: model_files.Opened
    data: Dataset
    validation: Dataset | None
    teacher: Model | None
    target: Path
    sources: tuple[Path, ...]
    report: str | None
    json: bool

    @classmethod
    def open(
        cls,
        command: str,
        model: str | None,
        *,
        data: str,
        val: str | None,
        teacher: str | None,
        teacher_arch: str | None,
        output: str | None,
        report: str | None,
        json: bool,
        **loading: Any,
    ) -> Job:
        """Open the model and its data; `command` names the default output.

        Raises:
            NNCompressError: one of them cannot be, there is no data, or the output could not be written: told
                before the training that would be lost.
        """
        own, of_teacher = _loading_of(model, teacher, teacher_arch, loading)
        opened = model_files.open_model(model, data=data, **own)
        sources = model_files.read_by(opened, data, val, teacher, loading["arch"], teacher_arch)
        target = model_files.output_for(output, model_files.default_output(opened, command), sources)
        report_file.check_report(report, sources, target)
        exporting.check_ops(opened.model, target)
        samples = api.dataset(data, opened.model, loading["normalize"], say)
        held_out = None if val is None else api.dataset(val, opened.model, loading["normalize"])
        imitated = None
        if teacher is not None:
            keys = ("arch", "weights", "weights_key", "strict", "trust_pickle")
            how = {key: of_teacher[key] for key in keys}
            said = with_remembered(loading["input"], opened.model.metadata)
            imitated, lacks = with_its_own(
                said, lambda input: api.load(teacher, input=input, data=data, notice=say, **how)
            )
            for lack in lacks.values():
                say(lack.told)
        return cls(opened, samples, held_out, imitated, target, sources, report, json)

    def finish(
        self,
        trained: Model,
        result: Result,
        table: RenderableType,
        progress: Progress,
        spent: Path | None = None,
    ) -> None:
        """Write the model, remove `spent` (kept in case it came to nothing), and print what was done."""
        progress.step(f"writing {self.target.name}", 0, None)
        file = exporting.write(trained, self.target, protect=self.sources, time_int8=int8_speed)
        model_files.remember(self.opened, self.target, self.opened.model, trained)
        if spent is not None:
            spent.unlink(missing_ok=True)
        document = {**result.to_json(), "output": file.to_json()}
        if self.json:
            print_json(document)
        else:
            show(table)
            show(written(file))
        report_file.write(self.report, document, (*self.sources, self.target))


def _loading_of(
    model: str | None, teacher: str | None, teacher_arch: str | None, loading: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the model and its teacher are opened: --arch is for those that hold weights only.

    Raises:
        UsageError: --teacher-arch without a teacher, or no file needs --arch.
    """
    if teacher_arch is not None:
        if teacher is None:
            raise UsageError("--teacher-arch is for a teacher", remedy="add --teacher MODEL, or leave it out")
        return loading, {**loading, **CARRIED, "arch": teacher_arch}
    if teacher is None:
        return loading, loading
    if model is None:  # what an earlier command wrote carries its architecture
        return {**loading, **CARRIED}, loading
    needed = needed_by((model, teacher), loading)
    return needed[model], needed[teacher]
