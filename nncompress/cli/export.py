"""`export`: write a model in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nncompress.cli import options
from nncompress.cli.compress import check_suffix
from nncompress.cli.console import print_json, progress, show
from nncompress.cli.declared import taking

_HELP = """Write MODEL as .onnx, .ort, .pte, .pt2 or .safetensors.

.onnx is for ONNX Runtime, .ort for ONNX Runtime Mobile, .pte for ExecuTorch on phones (nncompress[mobile]).
Each keeps the batch dynamic, and is run in its runtime and compared before it is kept.

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
    json: options.Json = False,
    **loading: Any,
) -> None:
    check_suffix(output)
    opened = options.open_model(model, **loading)
    from nncompress.export import write
    from nncompress.report import tables

    reads = options.read_by(opened, loading["data"], loading["arch"])
    target = options.output_for(output, Path(f"{opened.path.stem}.onnx"), reads)
    with progress() as bar:
        bar.step(f"writing {target.name}", 0, None)
        report = write(opened.model, target, protect=reads, storage=storage)
        options.remember(opened, target, opened.model, opened.model)
    if json:
        print_json({"schema": 1, "kind": "export", **report.to_json()})
    else:
        show(tables.written(report))
