"""`new`: build an architecture of the papers, and write it."""

from __future__ import annotations

from pathlib import Path

from nncompress import exporting
from nncompress.cli.console import print_json, progress, show
from nncompress.cli.work import model_files
from nncompress.errors import UsageError
from nncompress.ir.graph.stated_input import parse_input
from nncompress.report import tables
from nncompress.results import SCHEMA
from nncompress.zoo.registry import Architecture


def new(
    chosen: Architecture, output: str | None, *, classes: int | None, input: str | None, seed: int, json: bool
) -> None:
    """See the options of the command.

    Raises:
        UsageError: the architecture does not take such an input.
    """
    target = model_files.output_for(output, Path(f"{chosen.name}.pt2"), ())
    with progress() as bar:
        bar.step(f"building {chosen.name}", 0, None)
        shape = None
        if input is not None:
            shapes = parse_input(input)
            if len(shapes) != 1:
                raise UsageError(f"{chosen.name} takes one input", got=input)
            if len(shapes[0].shape) == len(chosen.shape):
                raise UsageError(
                    f"--input {input} has no batch", expected="the batch first", remedy=f"--input 1x{input}"
                )
            shape = tuple(shapes[0].shape[1:])
        model = chosen.build(classes=classes, shape=shape, seed=seed)
        report = exporting.write(model, target)
    if target.suffix.lower() == ".pt2":
        model_files.begin_session(target)
    if json:
        print_json({"schema": SCHEMA, "kind": "export", **report.to_json(), "converted": None})
    else:
        show(tables.written(report))
