"""`new`: an architecture of the papers, with fresh weights."""

from __future__ import annotations

from typing import Annotated

import typer

from nncompress.cli import options
from nncompress.cli.console import print_json, show
from nncompress.cli.later import later
from nncompress.cli.output_format import check_suffix
from nncompress.errors import UsageError
from nncompress.report import tables
from nncompress.results import SCHEMA
from nncompress.zoo.registry import ARCHITECTURES, architecture

work = later("new:new")

_HELP = """Build an architecture of the papers with fresh weights, ready to be trained.

--list describes them all. `--arch nncompress.zoo:resnet20` names one for weights that you already have.

Example:  nncompress new resnet20 -o model.pt2
"""


def register(app: typer.Typer) -> None:
    app.command("new", help=_HELP)(new)


def new(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="which; --list shows them")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="[default: NAME.pt2]")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="show the architectures")] = False,
    classes: Annotated[int | None, typer.Option(min=1, help="outputs, instead of its own number")] = None,
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="1x1x28x28", help="input shape with its batch, instead of its own"),
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    if list_all:
        if name is not None:
            raise UsageError(
                "new --list shows all architectures and takes no NAME",
                got=name,
                remedy=f"nncompress new {name}",
            )
        _list(json)
        return
    if name is None:
        raise UsageError("new: no NAME was given", remedy="nncompress new --list shows them")
    check_suffix(output)
    work(architecture(name), output, classes=classes, input=input, seed=seed, json=json)


def _list(json: bool) -> None:
    if json:
        fields = ("name", "shape", "classes", "parameters", "macs", "summary")
        rows = [{f: getattr(each, f) for f in fields} for each in ARCHITECTURES.values()]
        print_json({"schema": SCHEMA, "kind": "architectures", "architectures": rows})
        return
    show(tables.architectures(list(ARCHITECTURES.values())))
