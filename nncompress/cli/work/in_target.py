"""Models as files of a target, for `eval --target`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nncompress.cli.console import say
from nncompress.cli.work.artifacts import Artifact, told_of
from nncompress.errors import UsageError
from nncompress.exporting import write
from nncompress.targets import TARGETS, Target, target


def in_target(opened: Sequence[Artifact], name: str, folder: Path) -> list[Artifact]:
    """Each as a file in the target's runtime: a graph exported for it, a file as it is.

    Raises:
        UsageError: nothing here runs files for it, or it does not take such a file.
        MissingExtraError: its runtime is not installed.
        UnsupportedError, VerificationError: a graph cannot be exported for it.
    """
    where = target(name)
    if not where.runtime or where.device == "cuda":
        raise not_run("eval", name)
    where.need()
    found = []
    for position, each in enumerate(opened):
        path = each.path
        if each.model is not None:
            path = folder / f"{position}{where.suffixes[0]}"
            with told_of(each.name, opened):
                write(each.model, path, target=name)
            say(f"{each.name}: exported for {name}, and run in {where.runtime_name}")
        else:
            check_runs(each, (where,))
        found.append(replace(each, path=path, model=None, runtime=where.runtime))
    return found


def not_run(command: str, name: str) -> UsageError:
    """Nothing here runs files for the target `name`."""
    runs = [t.name for t in TARGETS.usable() if t.runtime and t.device != "cuda"]
    return UsageError(
        f"{command}: nothing here runs files for {name}",
        expected=", ".join(runs),
        remedy=f"leave --target out: an .onnx for {name} runs in ONNX Runtime here, which tells its values, "
        "not its speed",
    )


def check_runs(artifact: Artifact, where: Sequence[Target]) -> None:
    """Raise UsageError where one of the targets does not take this file."""
    for each in where:
        if artifact.model is None and artifact.path.suffix.lower() not in each.suffixes:
            raise UsageError(
                f"{each.name} does not run {artifact.name}",
                got=artifact.path.suffix,
                expected=", ".join(each.suffixes),
                remedy="give the model that it was exported from, or leave --target out",
            )
