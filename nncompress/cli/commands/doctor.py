"""`doctor`: what is installed, and what this machine can run."""

from __future__ import annotations

import json as json_text
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from nncompress import devices, extras
from nncompress.cli import options
from nncompress.cli.console import print_json, progress, show
from nncompress.errors import ExtensionError
from nncompress.extensions import GROUPS, Registry, distribution, named, offered
from nncompress.report.tables import plain, speed_table
from nncompress.results import SCHEMA
from nncompress.targets import speed
from nncompress.version import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType

_HELP = """Show what is installed, what each device can run, and the one command that adds what is missing.

What other packages add and the runtimes of CPUs are imported, and named where they are broken. The latter
are timed on a small network, for about two seconds, which is remembered per machine and versions.

Example:  nncompress doctor --json | jq .devices
"""

PACKAGES = (
    *("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "numpy"),
    *("openvino", "executorch", "kornia", "matplotlib", "nvidia-ml-py"),
)
LONGEST_TIMING = 120  # seconds


def register(app: typer.Typer) -> None:
    app.command("doctor", help=_HELP)(doctor)


def doctor(
    timing: Annotated[bool, typer.Option(help="time the runtimes, unless that is remembered")] = True,
    json: options.Json = False,
) -> None:
    with progress() as bar:
        bar.step("asking and timing the runtimes", 0, None)
        found = examination(timing)
    if json:
        print_json(found)
    else:
        show(_table(found))


def examination(timing: bool = True) -> dict[str, Any]:
    """Everything that `doctor` says, as JSON holds it; without `timing` of times only what is remembered."""
    processor = devices.processor()
    timed, untimed = speeds(timing)
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
        "speeds": timed,
        "untimed": untimed,
        "extensions": extensions(),
        "missing": {name: extras.EXTRAS[name].offers for name in missing},
        "command": extras.command(",".join(missing)) if missing else None,
    }


def speeds(timing: bool) -> tuple[list[dict[str, Any]], str]:
    """How fast each runtime is, as `targets` tells it, and why none was timed. What is not remembered is
    measured in a process of its own, which imports the runtimes and runs them."""
    there = [each for each in speed.timeable() if not extras.fault(each.runtime)]
    if known := speed.remembered(there):
        return [speed.row(each, known[each.name]) for each in there], ""
    if not there:
        return [], "none can be imported"
    if not timing:
        return [], "--no-timing"
    command = [sys.executable, "-P", "-m", "nncompress.benchmarking.latency.target"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        asked = subprocess.run(
            [*command, *(each.name for each in there)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_TIMING,
        )
    except subprocess.TimeoutExpired:
        return [], f"it takes more than {LONGEST_TIMING} s"
    if asked.returncode:
        return [], (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
    try:
        told = json_text.loads(asked.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        told = None
    found = speed.from_json(told, there)
    if not found:
        return [], "its process said nothing of them"
    return [speed.row(each, found[each.name]) for each in there], ""


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
    lines += [table, Text()]
    if found["speeds"]:
        lines += [speed_table(found["speeds"]), Text()]
    else:
        lines.append(Text(f"no runtime is timed: {found['untimed']}"))
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
