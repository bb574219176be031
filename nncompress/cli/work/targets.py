"""`targets`: the runtimes that --target names."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from nncompress import extras
from nncompress.benchmarking.latency.target import broken, fastest, speeds
from nncompress.cli.console import print_json, progress, show
from nncompress.report.tables import plain, speed_table
from nncompress.results import SCHEMA
from nncompress.targets import TARGETS, Target
from nncompress.targets.speed import row


def targets(json: bool) -> None:
    """Time the runtimes, and tell what each takes."""
    with progress() as bar:
        bar.step("timing the runtimes", 0, None)
        found = described()
    if json:
        print_json(found)
    else:
        show(_table(found))


def described() -> dict[str, Any]:
    """Everything that `targets` says, as JSON holds it."""
    measured, faults = speeds(), broken()
    return {
        "schema": SCHEMA,
        "kind": "targets",
        "fastest": fastest(),
        "targets": [
            {
                **row(each, measured.get(each.name)),
                "files": list(each.suffixes),
                "installed": each.installed,
                "fault": faults.get(each.name),
                "command": _command(each, each.name in faults),
                "activations": each.activations,
                "weights": each.weights,
                "floats": each.floats,
                "compiler": each.compiler,
                "notes": list(each.notes),
            }
            for each in TARGETS.usable()
        ],
    }


def _command(each: Target, fails: bool) -> str | None:
    """What makes its runtime work here, where one command does."""
    if not each.extra or (each.installed and not fails):
        return None
    return extras.again(each.extra) if fails else extras.command(each.extra)


def _table(found: dict[str, Any]) -> RenderableType:
    table = plain("target", "runs", "files", "here", right=4)
    for column in table.columns:
        column.no_wrap = False
    notes = []
    for each in found["targets"]:
        if each["seconds"]:
            here = "timed" + (", the fastest in floats" if each["name"] == found["fastest"] else "")
        elif each["fault"]:
            here = f"cannot be imported ({each['fault']}): {each['command']}"
        else:
            here = "installed, not timed" if each["installed"] else each["command"] or "files only"
        table.add_row(each["name"], each["title"], " ".join(each["files"]), here)
        notes += [Text(f"{each['name']}: {note}") for note in each["notes"]]
    timed = [each for each in found["targets"] if each["seconds"]]
    speeds = [Text(), speed_table(timed)] if timed else []
    return Group(table, *speeds, Text(), *notes)
