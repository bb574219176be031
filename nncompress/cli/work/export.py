"""`export`: a model in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from nncompress import api
from nncompress.analysis.distance.converted import made_float32
from nncompress.benchmarking.latency.int8_speed import int8_speed
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.output_format import suffix_for
from nncompress.cli.work import model_files
from nncompress.exporting import write
from nncompress.ir.formats.precision import has_other_floats
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
    if no_samples:
        opened.model.inputs = without_samples(opened.model.inputs)
    result, converted = opened.model, None
    if precision is not None and has_other_floats(opened.model):
        data = loading["data"]
        samples = data and api.dataset(data, opened.model, loading["normalize"], say)
        result, converted = made_float32(opened.model, samples)
    elif precision is not None:
        say(f"{opened.path} has no floats but float32: it is written as it is")
    reads = model_files.read_by(opened, loading["data"], loading["arch"])
    file = model_files.output_for(output, Path(f"{opened.stem}{suffix_for(target)}"), reads)
    with progress() as bar:
        bar.step(f"writing {file.name}", 0, None)
        report = write(result, file, protect=reads, storage=storage, target=target, time_int8=int8_speed)
        model_files.remember(opened, file, opened.model, result)
    if json:
        told = None if converted is None else converted.to_json()
        print_json({"schema": SCHEMA, "kind": "export", **report.to_json(), "converted": told})
    else:
        if converted is not None:
            show(tables.moved(converted))
        show(tables.written(report))
