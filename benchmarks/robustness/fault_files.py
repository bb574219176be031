"""What a killed command left: outputs, whole or not, temporary folders (see `fault_series`)."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RECORD = ".fault"  # in the work's folder: what the undisturbed child tells of its writes
UNWHOLE = (".lock", ".nncompress.lock", RECORD)  # which hold nothing
GROWING = ".journal"  # Optuna's, which it appends to; damaged, it is begun anew from the trials


def contents(folder: Path, names: tuple[str, ...] = (".",)) -> dict[str, bytes]:
    """Of the files below, but locks and what a killed writer left."""
    found = {}
    for name in names:
        top = folder / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            place = path.relative_to(folder)
            ours = any(part.startswith(".nncompress-") for part in place.parts)
            lock = path.name in UNWHOLE or path.suffix in (".lock", GROWING)
            if path.is_file() and not ours and not lock:
                found[str(place)] = path.read_bytes()
    return found


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".nncompress-*.part") if path.is_dir()]


def restore(folder: Path, before: Path) -> None:
    """Make `folder` what `before` is; what is the same is left alone, as open files are."""
    for path in sorted(folder.rglob("*"), reverse=True):
        there = before / path.relative_to(folder)
        if path.is_dir() and not path.is_symlink():
            if not there.is_dir():
                shutil.rmtree(path)
        elif not there.is_file():
            path.unlink()
    for path in sorted(before.rglob("*")):
        target = folder / path.relative_to(before)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists() or target.read_bytes() != path.read_bytes():
            target.unlink(missing_ok=True)
            shutil.copy2(path, target)


def is_whole(path: Path) -> bool:
    """Read by the reader of its kind: two runs need not write the same bytes (times, order of measuring)."""
    from nncompress.loading import load_model
    from nncompress.loading.state_dict.shards import open_checkpoint
    from nncompress.runtimes import open_artifact

    readers: dict[str, Callable[[Path], Any]] = {
        ".pt2": load_model,
        ".onnx": open_artifact,
        ".ort": open_artifact,
        ".pte": open_artifact,
        ".xml": open_artifact,
        ".bin": lambda path: open_artifact(path.with_suffix(".xml")),
        ".safetensors": lambda path: [tensor.read() for tensor in open_checkpoint(path).tensors],
        ".checkpoint": lambda path: torch.load(path, weights_only=True),
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        ".html": lambda path: path.read_text().rindex("</html>"),
        ".md": lambda path: path.read_text().rindex("\n"),
        ".toml": lambda path: tomllib.loads(path.read_text()),
        ".csv": lambda path: path.read_text().index("\n", -1),
    }
    try:
        readers[path.suffix](path)
    except Exception:
        return False
    return True


def weights(path: Path) -> dict[str, Any] | None:
    """Of a model, or of a folder of shards, or the bytes of OpenVINO's; None where there is none."""
    from nncompress.loading import load_model
    from nncompress.loading.state_dict.shards import open_checkpoint

    if not path.exists():
        return None
    if path.suffix == ".xml":
        return {"bin": path.with_suffix(".bin").read_bytes()}
    if path.is_dir():
        return {tensor.name: tensor.read().tolist() for tensor in open_checkpoint(path).tensors}
    return {name: tensor.tolist() for name, tensor in load_model(path).state_dict().items()}
