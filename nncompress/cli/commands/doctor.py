"""`doctor`: what is installed, and what this machine can run."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group
from rich.text import Text

from nncompress import devices, extras
from nncompress.cli import options
from nncompress.cli.console import print_json, show
from nncompress.errors import ExtensionError
from nncompress.extensions import GROUPS, Registry, distribution, named, offered
from nncompress.report.tables import plain
from nncompress.results import SCHEMA
from nncompress.version import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType

_HELP = """Show what is installed, what each device can run, and the one command that adds what is missing.

Nothing is measured. What other packages add and the runtimes of CPUs are imported, and named where they
are broken.

Example:  nncompress doctor --json | jq .devices
"""

PACKAGES = (
    *("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "numpy"),
    *("openvino", "executorch", "kornia", "matplotlib", "nvidia-ml-py"),
)


def register(app: typer.Typer) -> None:
    app.command("doctor", help=_HELP)(doctor)


def doctor(json: options.Json = False) -> None:
    found = examination()
    if json:
        print_json(found)
    else:
        show(_table(found))


def examination() -> dict[str, Any]:
    """Everything that `doctor` says, as JSON holds it."""
    processor = devices.processor()
    missing = [name for name in extras.EXTRAS if not extras.installed(name) and _of_use(name)]
    return {
        "schema": SCHEMA,
        "kind": "doctor",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "nncompress": __version__,
            **{name: v for name in PACKAGES if (v := extras.version(name))},
        },
        "cpu": {
            "name": processor.name,
            "cores_usable": processor.cores,
            "vector": processor.vector,
            "int8": processor.int8,
        },
        "gpus": [asdict(gpu) for gpu in devices.gpus()],
        "devices": [asdict(ability) for ability in devices.abilities()],
        "extensions": extensions(),
        "missing": {name: extras.EXTRAS[name].offers for name in missing},
        "command": extras.command(",".join(missing)) if missing else None,
    }


def extensions() -> list[dict[str, str]]:
    """What other packages add, and what is wrong with it: it is imported, where there is any."""
    places = {
        "nncompress.passes": "nncompress.passes:PASSES",
        "nncompress.criteria": "nncompress.analysis.importance:CRITERIA",
        "nncompress.runtimes": "nncompress.runtimes:RUNTIMES",
        "nncompress.targets": "nncompress.targets:TARGETS",
        "nncompress.data": "nncompress.data.sources.python:SOURCES",
        "nncompress.metrics": "nncompress.analysis.metrics.registry:METRICS",
    }
    found = []
    for group, kind in GROUPS.items():
        for name, points in offered(group).items():
            registry: Registry[Any] = named(places[group])
            fault = "the name is nncompress's own" if registry.shadowed(name) else ""
            try:
                registry[name]
            except ExtensionError as error:
                fault = error.got
            package = " and ".join(map(distribution, points))
            found.append({"kind": kind, "name": name, "package": package, "fault": fault})
    return found


def _of_use(extra: str) -> bool:
    return extra != "cuda" or bool(devices.gpus())


def _table(found: dict[str, Any]) -> RenderableType:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    cpu = found["cpu"]
    instructions = ", ".join((*cpu["vector"], *cpu["int8"])) or "instruction sets unknown"
    lines: list[RenderableType] = [
        Text(f"{found['system']}, Python {found['python']}", style="bold"),
        Text(versions),
        Text(f"CPU: {cpu['name']}, {cpu['cores_usable']} cores, {instructions}"),
        *(Text(f"GPU: {g['name']}, {g['memory'] / 2**30:.0f} GiB") for g in found["gpus"]),
        Text(),
    ]
    table = plain("device", "runtime", "runs", "", right=4)
    for column in table.columns:
        column.no_wrap = False
    for row in found["devices"]:
        table.add_row(row["device"], row["runtime"], ", ".join(row["runs"]) or "–", row["note"])
    lines.append(table)
    if not cpu["int8"]:
        lines.append(Text("without int8 instructions, quantize --weight-bits 7 avoids overflow on x86"))
    for each in found["extensions"]:
        said = f"{each['kind']} {each['name']} of {each['package']}"
        lines.append(Text(f"{said}: not used: {each['fault']}" if each["fault"] else said))
    for name, offers in found["missing"].items():
        lines.append(Text(f"missing: {name}: {offers}"))
    lines.append(
        Text(f"to add what is missing: {found['command']}" if found["command"] else "nothing is missing")
    )
    return Group(*lines)
