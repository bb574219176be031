"""`inspect`: what is in a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.declared import taking
from nncompress.cli.later import later
from nncompress.errors import UsageError

work = later("inspect:inspect")

_HELP = """Show a model's layers: kind, shape, parameters, MACs and bytes.

A MAC is one multiplication with its addition, counted for one sample.

--units shows instead what `prune-nodes` can remove: groups of nodes, the layers that one node spans, and
what removing one saves. --spectrum plots the singular values of every weight, and what rank keeps how much.

--target NAME shows how long every layer takes there, on this machine: now, in int8, in bf16 where the
processor computes in it, and at half the width.

Example:  nncompress inspect model.pt --json | jq .totals
"""


def register(app: typer.Typer) -> None:
    app.command("inspect", help=_HELP)(inspect)


@taking({name: pair for name, pair in options.LOADING.items() if name != "normalize"})
def inspect(
    model: options.ModelArgument = None,
    units: Annotated[
        bool, typer.Option("--units", help="show the nodes that can be removed together")
    ] = False,
    spectrum: Annotated[bool, typer.Option("--spectrum", help="plot the weights' singular values")] = False,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="time every layer there: now, in int8, at half the width"),
    ] = None,
    json: options.Json = False,
    **loading: Any,
) -> None:
    asked = [
        flag
        for flag, given in (("--units", units), ("--spectrum", spectrum), ("--target", target is not None))
        if given
    ]
    if len(asked) > 1:
        raise UsageError("inspect: give one of --units, --spectrum and --target", got=" ".join(asked))
    work(model, units=units, spectrum=spectrum, target=target, json=json, loading=loading)
