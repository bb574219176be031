"""`inspect`: layers, what can be removed together, singular values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings
from nncompress.analysis.couplings.summary import summarize
from nncompress.analysis.lowrank.spectrum import spectra
from nncompress.benchmarking.latency.forecast import forecast
from nncompress.benchmarking.latency.target import layer_clock
from nncompress.cli.console import print_json, progress, show
from nncompress.cli.work import model_files
from nncompress.report import tables
from nncompress.report.forecast import forecast as forecast_table
from nncompress.report.groups import groups
from nncompress.results import SCHEMA


def inspect(
    model: str | None,
    *,
    units: bool,
    spectrum: bool,
    target: str | None,
    json: bool,
    loading: dict[str, Any],
) -> None:
    """See the options of the command."""
    if target is not None:
        layer_clock(target)  # refused before the model is opened
    opened = model_files.open_model(model, **loading)
    if target is not None:
        show_forecast(opened, target, json)
        return
    shown = show_units if units else show_spectra if spectrum else show_layers
    shown(opened, json)


def show_layers(opened: model_files.Opened, json: bool) -> None:
    """Every layer with its costs."""
    costs = cost(opened.model)
    if json:
        print_json(
            {
                "schema": SCHEMA,
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


def show_units(opened: model_files.Opened, json: bool) -> None:
    couplings = find_couplings(opened.model)
    rows = summarize(couplings)
    if json:
        print_json(
            {
                "schema": SCHEMA,
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


def show_spectra(opened: model_files.Opened, json: bool) -> None:
    found = spectra(opened.model)
    if json:
        rows = [row.to_json() for row in found]
        print_json({"schema": SCHEMA, "kind": "spectra", "model": str(opened.path), "spectra": rows})
    else:
        show(tables.spectra(found))


def show_forecast(opened: model_files.Opened, target: str, json: bool) -> None:
    """Every layer's time in a target: now, in int8, at half the width."""
    with progress() as bar:
        found = forecast(opened.model, target, bar)
    if json:
        print_json({"schema": SCHEMA, "kind": "forecast", "model": str(opened.path), **asdict(found)})
    else:
        show(forecast_table(found, opened.path))
