"""`inspect`: what is in a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.console import print_json, show
from nncompress.cli.declared import taking
from nncompress.errors import UsageError

_HELP = """Show a model's layers: kind, shape, parameters, MACs and bytes.

A MAC is one multiplication with its addition, counted for one sample.

--units shows instead what `prune-nodes` can remove: groups of nodes, the layers that one node spans, and
what removing one saves. --spectrum plots the singular values of every weight, and what rank keeps how much.

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
    json: options.Json = False,
    **loading: Any,
) -> None:
    if units and spectrum:
        raise UsageError("inspect: give one of --units and --spectrum", got="both")
    opened = options.open_model(model, **loading)
    if units:
        _show_units(opened, json)
        return
    if spectrum:
        _show_spectra(opened, json)
        return
    from nncompress.analysis.cost import cost
    from nncompress.report import tables

    costs = cost(opened.model)
    if json:
        print_json(
            {
                "schema": 1,
                "kind": "inspect",
                "model": str(opened.path),
                "inputs": [spec.to_json() for spec in opened.model.inputs],
                "outputs": list(opened.model.outputs),
                "layers": [row.to_json() for row in costs.layers],
                "totals": costs.totals(),
                "agreement": opened.model.agreement,
                "history": opened.model.history,
            }
        )
        return
    show(tables.layers(opened.model, costs, opened.path))


def _show_units(opened: options.Opened, json: bool) -> None:
    from nncompress.analysis.couplings import find_couplings
    from nncompress.analysis.couplings.summary import summarize
    from nncompress.report.groups import groups

    couplings = find_couplings(opened.model)
    rows = summarize(couplings)
    if json:
        print_json(
            {
                "schema": 1,
                "kind": "units",
                "model": str(opened.path),
                "groups": [row.to_json() for row in rows],
                "pinned": [
                    {"tensor": tensor, "dim": dim, "why": why}
                    for (tensor, dim), why in couplings.pinned.items()
                ],
                "prunable_share": couplings.prunable_share(),
            }
        )
    else:
        show(groups(rows, couplings.prunable_share(), couplings.pinned))


def _show_spectra(opened: options.Opened, json: bool) -> None:
    from nncompress.analysis.lowrank.spectrum import spectra
    from nncompress.report import tables

    found = spectra(opened.model)
    if json:
        rows = [row.to_json() for row in found]
        print_json({"schema": 1, "kind": "spectra", "model": str(opened.path), "spectra": rows})
    else:
        show(tables.spectra(found))
