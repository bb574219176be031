"""`export`: a model in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from nncompress.benchmarking.latency.int8_speed import int8_speed
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.output_format import suffix_for
from nncompress.cli.work import model_files
from nncompress.exporting import write
from nncompress.ir.formats.precision import convert, has_other_floats
from nncompress.ir.formats.samples import without_samples
from nncompress.report import tables
from nncompress.results import SCHEMA


def export(
    model: str | None,
    output: str | None,
    *,
    storage: Literal["plain", "packed", "entropy"],
    precision: Literal["float32"] | None,
    target: str | None,
    no_samples: bool,
    json: bool,
    loading: dict[str, Any],
) -> None:
    """See the options of the command."""
    opened = model_files.open_model(model, **loading)
    if precision is not None and has_other_floats(opened.model):
        convert(opened.model, precision)
    elif precision is not None:
        say(f"{opened.path} has no floats but float32: it is written as it is")
    if no_samples:
        opened.model.inputs = without_samples(opened.model.inputs)
    reads = model_files.read_by(opened, loading["data"], loading["arch"])
    file = model_files.output_for(output, Path(f"{opened.stem}{suffix_for(target)}"), reads)
    with progress() as bar:
        bar.step(f"writing {file.name}", 0, None)
        report = write(
            opened.model, file, protect=reads, storage=storage, target=target, time_int8=int8_speed
        )
        model_files.remember(opened, file, opened.model, opened.model)
    if json:
        print_json({"schema": SCHEMA, "kind": "export", **report.to_json()})
    else:
        show(tables.written(report))
