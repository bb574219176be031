"""Model files opened for `eval` and `bench`; the others are compared with the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nncompress.cli import options, session
from nncompress.cli.console import say
from nncompress.errors import UsageError

if TYPE_CHECKING:
    from nncompress.data import Dataset
    from nncompress.ir import Model
    from nncompress.runtimes import Runner

LOADING = ("arch", "input", "normalize", "trust_pickle")


@dataclass(frozen=True)
class Artifact:
    """One file.

    Attributes:
        model: its graph, None for a file that only its own runtime reads.
        normalize: how its images are normalised, as the file remembers.
    """

    path: Path
    model: Model | None
    normalize: str | None

    @property
    def name(self) -> str:
        return self.path.name

    def open(self, threads: int) -> Runner:
        """In torch for a graph, else in the runtime that owns the format."""
        from nncompress.runtimes import open_artifact

        return open_artifact(self.path if self.model is None else self.model, threads)


def open_all(
    paths: Sequence[str] | None,
    *,
    every: bool = False,
    arch: str | None,
    input: str | None,
    data: str | None,
    normalize: str | None,
    trust_pickle: bool,
) -> list[Artifact]:
    """The files of `paths`; with none, the original and what the previous command of this directory wrote.

    Args:
        every: with no paths, all results since the original, in order.

    Raises:
        UsageError: none were given and there is no earlier result.
    """
    if not paths:
        previous = session.read()
        if previous is None:
            raise UsageError(
                "no model was given, and no earlier command wrote one in this directory",
                remedy="nncompress bench model.pt2 smaller.onnx",
            )
        chain = previous.chain if every else (previous.original, previous.chain[-1])
        paths = [p for p in dict.fromkeys(chain) if Path(p).is_file()]
        say(f"comparing {', '.join(paths)}")
    return [
        _open(path, arch=arch, input=input, data=data, normalize=normalize, trust_pickle=trust_pickle)
        for path in paths
    ]


def _open(path: str, **loading: object) -> Artifact:
    if Path(path).suffix.lower() == ".onnx":
        from nncompress.runtimes import open_artifact

        stored = getattr(open_artifact(path), "metadata", {}).get("nncompress.metadata", "{}")
        try:
            remembered = json.loads(stored).get("normalize")
        except (ValueError, AttributeError):
            remembered = None
        return Artifact(Path(path), None, str(loading["normalize"] or remembered or "") or None)
    opened = options.open_model(path, **loading)  # type: ignore[arg-type]
    return Artifact(Path(path), opened.model, opened.model.metadata.get("normalize"))


def dataset_for(artifacts: Sequence[Artifact], data: str, normalize: str | None) -> Dataset:
    """The data, opened for the first artifact.

    Raises:
        DataError: it cannot be read, or does not fit the first artifact's inputs.
    """
    from nncompress.data import open_data

    how = normalize or next((a.normalize for a in artifacts if a.normalize), None)
    return open_data(data, artifacts[0].open(1).inputs, how)
