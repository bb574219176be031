"""`export`: write a model in another format."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from nncompress.cli import options
from nncompress.cli.declared import taking
from nncompress.cli.later import later
from nncompress.cli.output_format import check_suffix

work = later("export:export")

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
        typer.Option(
            help="make a model in float16, bfloat16 or float64 one in float32: weights, inputs and outputs"
        ),
    ] = None,
    target: options.TargetOption = None,
    no_samples: options.NoSamples = False,
    json: options.Json = False,
    **loading: Any,
) -> None:
    check_suffix(output, target)
    work(
        model,
        output,
        storage=storage,
        precision=precision,
        target=target,
        no_samples=no_samples,
        json=json,
        loading=loading,
    )
