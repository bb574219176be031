"""`export`: write a model in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nncompress.cli import model_files, options
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.declared import taking
from nncompress.cli.output_format import check_suffix, suffix_for
from nncompress.report import tables
from nncompress.results import SCHEMA

_HELP = """Write MODEL as .onnx, .ort, .xml, .pte, .pt2 or .safetensors.

.onnx is for ONNX Runtime and others, .ort for ONNX Runtime Mobile, .xml for
OpenVINO (nncompress[openvino]), .pte for ExecuTorch on phones (nncompress[mobile]).
Each keeps the batch dynamic, and is run in its runtime and compared before it is kept.

An .onnx is the same whatever processor wrote it, and runs anywhere; with
--target ort-cpu it has what ONNX Runtime likes on this machine.

Example:  nncompress export model.pt2 -o model.pte
"""


def register(app: typer.Typer) -> None:
    app.command("export", help=_HELP)(export)


@taking(options.LOADING)
def export(
    model: options.ModelArgument = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="[default: MODEL.onnx]")
    ] = None,
    storage: Annotated[
        Literal["plain", "packed", "entropy"],
        typer.Option(
            help="weights of few values or many zeros: as they are; as indices and bitmaps where that is "
            "smaller; or these entropy-coded, too (not in .onnx)"
        ),
    ] = "packed",
    precision: Annotated[
        Literal["float32"] | None,
        typer.Option(help="make a float16 or bfloat16 model one of float32: weights, inputs and outputs"),
    ] = None,
    target: options.TargetOption = None,
    no_samples: options.NoSamples = False,
    json: options.Json = False,
    **loading: Any,
) -> None:
    check_suffix(output, target)
    opened = model_files.open_model(model, **loading)
    from nncompress.bench.latency.int8_speed import int8_speed
    from nncompress.export import write
    from nncompress.ir.formats.precision import convert, has_halves
    from nncompress.ir.formats.samples import without_samples

    if precision is not None and has_halves(opened.model):
        convert(opened.model, precision)
    elif precision is not None:
        say(f"{opened.path} has nothing of 16 bits: it is written as it is")
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
