"""Model files opened for `eval` and `bench`; the others are compared with the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncompress.cli import options, session
from nncompress.cli.console import say
from nncompress.errors import UsageError

if TYPE_CHECKING:
    from nncompress.data import Dataset
    from nncompress.ir import Model
    from nncompress.runtimes import Runner


@dataclass(frozen=True)
class Artifact:
    """One file.

    Attributes:
        model: its graph, None for a file that only its own runtime reads.
        normalize: how its images are normalised, as the file remembers.
        name: what tables call it: the file's name, or the pass that made it in this directory's session.
    """

    path: Path
    model: Model | None
    normalize: str | None
    name: str

    def open(self, threads: int) -> Runner:
        """In torch for a graph, else in the runtime that owns the format."""
        from nncompress.runtimes import open_artifact

        return open_artifact(self.path if self.model is None else self.model, threads)


def open_all(
    paths: Sequence[str] | None,
    *,
    every: bool = False,
    **loading: Any,
) -> list[Artifact]:
    """The files of `paths`; with none, the original and what the previous command of this directory wrote.

    Args:
        every: with no paths, all results since the original, in order.
        loading: the options of `options.LOADING`.

    Raises:
        UsageError: none were given and there is no earlier result.
    """
    named = bool(paths)
    if not paths:
        previous = session.read()
        if previous is None:
            raise UsageError(
                "no model was given, and in this directory there is no result of an earlier command",
                remedy="nncompress COMMAND model.pt2 smaller.onnx",
            )
        chain = previous.chain if every else (previous.original, previous.chain[-1])
        paths = [p for p in dict.fromkeys(chain) if Path(p).is_file()]
        if not paths:
            raise UsageError(
                "no model was given, and what earlier commands wrote in this directory is gone",
                remedy="nncompress COMMAND model.pt2 smaller.onnx",
            )
        say(f"comparing {', '.join(paths)}")
    return [_open(path, Path(path).name if named else _made_by(path), loading) for path in paths]


def names(opened: Sequence[Artifact]) -> list[str]:
    """What tables call them: unique, so by paths where names are alike; one file twice is counted."""
    names = [each.name for each in opened]
    names = [name if names.count(name) == 1 else str(each.path) for name, each in zip(names, opened)]
    return [
        name if name not in names[:position] else f"{name} ({names[:position].count(name) + 1})"
        for position, name in enumerate(names)
    ]


def _made_by(path: str) -> str:
    """The last word of the stem: "original", or the pass that wrote it; an exported file keeps its name."""
    stem, _, made_by = Path(path).stem.rpartition(".")
    return made_by if stem and path.endswith(".pt2") else Path(path).name


def _open(path: str, name: str, loading: dict[str, Any]) -> Artifact:
    if Path(path).suffix.lower() in (".onnx", ".ort", ".pte"):  # OPENERS, whose import takes torch's time
        from nncompress.runtimes import open_artifact

        stored = getattr(open_artifact(path), "metadata", {}).get("nncompress.metadata", "{}")
        try:
            remembered = json.loads(stored).get("normalize")
        except (ValueError, AttributeError):
            remembered = None
        return Artifact(Path(path), None, loading["normalize"] or remembered or None, name)
    opened = options.open_model(path, **loading)
    return Artifact(Path(path), opened.model, opened.model.metadata.get("normalize"), name)


def dataset_for(artifacts: Sequence[Artifact], data: str, normalize: str | None) -> Dataset:
    """The data, opened for the first artifact.

    Raises:
        DataError: it cannot be read, or does not fit the first artifact's inputs.
    """
    from nncompress.data import open_data

    how = normalize or next((a.normalize for a in artifacts if a.normalize), None)
    return open_data(data, artifacts[0].open(1).inputs, how)
