"""What `fuzz.py` reads: the kinds of files, and for each the reader of the commands."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _use(model: Any) -> None:
    """As `inspect` does, and one run, as every pass begins with, of a model as small as those here are."""
    from nncompress.analysis.cost import cost
    from nncompress.ir.graph.verify import outputs_checked

    cost(model)
    repr(model)
    outputs_checked(model, model.example_inputs(batch=2), "the model as loaded")


def _load(path: Path, **keywords: Any) -> None:
    from nncompress.loading import load_model

    _use(load_model(path, **keywords))


def _load_weights(path: Path) -> None:
    from nncompress.loading import load_model

    _use(load_model(path, arch="net.py:build", input_shapes="1x3x8x8"))


def _open_artifact(path: Path) -> None:
    from nncompress.runtimes import open_artifact

    opened = open_artifact(str(path))
    getattr(opened, "metadata", {}).get("nncompress.metadata", "{}")


def _recipe(path: Path) -> None:
    from nncompress.recipe import read_recipe

    read_recipe(path)


def _data(path: Path | str) -> None:
    from nncompress.data import open_data
    from nncompress.ir import InputSpec

    dataset = open_data(str(path), (InputSpec("x", "float32", ("batch", 3, 8, 8)),), None)
    next(iter(dataset.batches(2, limit=2)))


def _images(path: Path) -> None:
    _data(path.parent.parent)


def _session(path: Path) -> None:
    from nncompress.cli import session

    session.FOLDER = path.parent
    session.read()


def _checkpoint(path: Path) -> None:
    from nncompress.train import checkpoint

    checkpoint.load(path, {"model": "a"})


def _bench(path: Path) -> None:
    from nncompress.bench import baseline

    baseline.read(path)


def _ledger(path: Path) -> None:
    from nncompress.files.ledger import Ledger

    assert all(isinstance(name, str) for name in Ledger(path.parent).names)


def _latency(path: Path) -> None:
    from nncompress.bench.latency.table import LatencyTable
    from nncompress.targets import TARGETS

    table = LatencyTable(TARGETS["ort-cpu"], path.parent)
    table.file.path = path  # whose own path names the machine
    json.dumps(table._read())


def _idx(path: Path) -> None:
    from nncompress.data.sources.mnist import read_idx

    read_idx(path, 3)


def _tar(path: Path) -> None:
    _data(f"cifar10:{path.parent}?split=test")


def _batches(path: Path) -> None:
    from nncompress.data.sources.cifar10 import read_batch

    read_batch(path)


def _input(path: Path) -> None:
    from nncompress.ir.graph.stated_input import parse_input

    parse_input(path.read_text(errors="replace"))


@dataclass(frozen=True)
class Target:
    """A kind of file, where it lies, and its reader; the current folder is that of `good_files`."""

    kind: str
    place: str
    read: Callable[[Path], None]


TARGETS = {
    target.kind: target
    for target in (
        Target("pt2", "a.pt2", _load),
        Target("module", "a.pt", functools.partial(_load, input_shapes="1x3x8x8")),
        Target("weights", "a.pt", _load_weights),
        Target("legacy", "a.pt", _load_weights),
        Target("safetensors", "a.safetensors", _load_weights),
        Target("onnx", "a.onnx", _open_artifact),
        Target("recipe", "a.toml", _recipe),
        Target("npz", "a.npz", _data),
        Target("image", "images/a/x.png", _images),
        Target("session", "session.json", _session),
        Target("checkpoint", "a.checkpoint", _checkpoint),
        Target("bench", "a.json", _bench),
        Target("source", "a.onnx", _load),
        Target("ort", "a.ort", _open_artifact),
        Target("ledger", ".nncompress.json", _ledger),
        Target("latency", "a.json", _latency),
        Target("idx", "a-idx3-ubyte", _idx),
        Target("tar", "cifar/test.tar", _tar),
        Target("batches", "data_batch_1", _batches),
        Target("input", "input.txt", _input),
    )
}
