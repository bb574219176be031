"""What a killed command left: outputs, whole or not, temporary folders (see `fault_series`)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SETTLED = ".fault"  # in the work's folder: what the child has to tell that nothing ended


def contents(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Of the files below, but locks and what a killed writer left."""
    found = {}
    for name in names:
        top = folder / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            place = path.relative_to(folder)
            ours = any(part.startswith(".nncompress-") for part in place.parts)
            if path.is_file() and not ours and path.name not in (".lock", ".nncompress.lock", SETTLED):
                found[str(place)] = path.read_bytes()
    return found


def leftovers() -> list[Path]:
    return [path for path in Path.cwd().rglob(".nncompress-*.part") if path.is_dir()]


def is_whole(path: Path) -> bool:
    """Read by the reader of its kind: two runs need not write the same bytes (times, order of measuring)."""
    from nncompress.loading import load_model
    from nncompress.runtimes import open_artifact

    readers: dict[str, Callable[[Path], Any]] = {
        ".pt2": load_model,
        ".onnx": open_artifact,
        ".ort": open_artifact,
        ".pte": open_artifact,
        ".checkpoint": lambda path: torch.load(path, weights_only=True),
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        ".html": lambda path: path.read_text().rindex("</html>"),
        ".toml": lambda path: tomllib.loads(path.read_text()),
        ".csv": lambda path: path.read_text().index("\n", -1),
    }
    try:
        readers[path.suffix](path)
    except Exception:
        return False
    return True


def weights(path: Path) -> dict[str, Any] | None:
    from nncompress.loading import load_model

    if not path.exists():
        return None
    return {name: tensor.tolist() for name, tensor in load_model(path).state_dict().items()}
