"""What `files.py` reads: the kinds of files, and for each the reader of the commands."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzz.good_data import BESIDE
from nncompress.extras import installed


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

    kept, session.RECORD = session.RECORD, path
    try:
        session.read()
    finally:
        session.RECORD = kept


def _checkpoint(path: Path) -> None:
    from nncompress.train import checkpoint

    checkpoint.load(path, {"model": "a"})


def _bench(path: Path) -> None:
    from nncompress.benchmarking import baseline

    baseline.read(path)


def _ledger(path: Path) -> None:
    from nncompress.files.ledger import Ledger

    assert all(isinstance(name, str) for name in Ledger(path.parent).names)


def _latency(path: Path) -> None:
    from nncompress.benchmarking.latency.table import LatencyTable
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


def _table(path: Path) -> None:
    from nncompress.data import open_data

    next(iter(open_data(str(path)).batches(2, limit=2)))


def _sounds(path: Path) -> None:
    from nncompress.data import open_data

    next(iter(open_data(str(path.parent.parent)).batches(2, limit=2)))


def _texts(path: Path) -> None:
    from nncompress.data import open_data

    table = f"{path.with_name('texts.csv')}?text=text&y=y&tokenizer={path.parent}&length=8"
    next(iter(open_data(table).batches(2, limit=2)))


def _boxes(path: Path) -> None:
    _data(path.parents[1] if path.suffix == ".txt" else path.parent)


def _saved_dataset(path: Path) -> None:
    from nncompress.data import open_data

    split = "split=train&" if path.name == "dataset_dict.json" else ""
    next(iter(open_data(f"{path.parent}?{split}x=x&y=y").batches(2, limit=2)))


def _streamed(path: Path) -> None:
    """As a run that goes on reads what an earlier one left."""
    from nncompress.files.ledger import Ledger
    from nncompress.loading.state_dict.shards import open_checkpoint
    from nncompress.recipe import parse_pass
    from nncompress.streaming.shards import Shards

    source = open_checkpoint("c.safetensors")
    owns, Ledger.owns = Ledger.owns, lambda self, name: name == path.name  # type: ignore[method-assign]
    try:
        each = parse_pass("quantize:mode=weights")
        Shards(path.parent, source, [source.tensors], each, {}).finished  # noqa: B018
    finally:
        Ledger.owns = owns  # type: ignore[method-assign]


def _reported(path: Path) -> None:
    from nncompress.report.facts.read import section_of

    section_of(str(path.parent if path.name == "search.json" else path))


def _trained(path: Path) -> None:
    from nncompress.files.bounded_text import read_json
    from nncompress.search.finetune import TRAINED

    with _measured_anew():
        TRAINED(read_json(path))


def _search(path: Path) -> None:
    from nncompress.cli.work.search.search_folder import SETTINGS
    from nncompress.search.records import read

    read(path, SETTINGS)


def _trial(path: Path) -> None:
    from nncompress.analysis.metrics.registry import named_metric
    from nncompress.files.bounded_text import read_json
    from nncompress.report import search as report
    from nncompress.search import trial
    from nncompress.search.optimize import recipe_of

    with _measured_anew():
        row = trial.record(read_json(path))
        report.trial(row, named_metric("top1"))
        recipe_of(row)


def _effect(path: Path) -> None:
    from nncompress.files.bounded_text import read_json
    from nncompress.search.layers.sensitivity import RECORD

    with _measured_anew():
        RECORD(read_json(path))


@contextmanager
def _measured_anew() -> Iterator[None]:
    """As `nncompress.search.records` takes what it cannot read."""
    from nncompress.files.bounded_text import Unreadable
    from nncompress.loading.json_schema import Rejected

    with suppress(Unreadable, Rejected):
        yield


def _cycles(path: Path) -> None:
    from nncompress.cycles.folder import Folder

    Folder(path.parent).stored({"model": "a"})


def _directory(path: Path) -> None:
    _load(path.parent)


def _runs(path: Path) -> None:
    """Opened, and run: OpenVINO compiles for the sizes of its inputs."""
    import numpy as np

    from nncompress.runtimes import open_artifact

    runner = open_artifact(str(path))
    sizes = [[s if isinstance(s, int) else 2 for s in spec.shape] for spec in runner.inputs]
    if sum(map(math.prod, sizes)) < 2**20:
        runner.run(*(np.zeros(s, spec.dtype) for s, spec in zip(sizes, runner.inputs)))


def _input(path: Path) -> None:
    from nncompress.ir.graph.stated_input import parse_input

    parse_input(path.read_text(errors="replace"))


@dataclass(frozen=True)
class Target:
    """A kind of file, where it lies, and its reader; the current folder is that of `good_files`."""

    kind: str
    place: str
    read: Callable[[Path], None]

    def prepare(self, folder: Path) -> None:
        """Make `folder`, with what belongs beside the file."""
        folder.mkdir(parents=True, exist_ok=True)
        if (BESIDE / self.kind).is_dir():
            shutil.copytree(BESIDE / self.kind, folder, dirs_exist_ok=True)
        (folder / self.place).parent.mkdir(parents=True, exist_ok=True)


NEEDS = {  # kinds that can be read where an extra is installed
    **dict.fromkeys(("parquet", "saved", "splits", "arrow"), "parquet"),
    "tokenizer": "text",
    "openvino": "openvino",
    **dict.fromkeys(("config", "index", "shard"), "huggingface"),
}
TARGETS = {
    target.kind: target
    for target in (
        Target("pt2", "a.pt2", _load),
        Target("module", "a.pt", functools.partial(_load, input_shapes="1x3x8x8")),
        Target("weights", "a.pt", _load_weights),
        Target("bin", "pytorch_model.bin", _load_weights),
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
        Target("torchscript", "a.pt", functools.partial(_load, input_shapes="1x3x8x8")),
        Target("csv", "a.csv", _table),
        Target("tsv", "a.tsv", _table),
        Target("jsonl", "a.jsonl", _table),
        Target("parquet", "a.parquet", _table),
        Target("tensors", "a.pt", _table),
        Target("wav", "a/a.wav", _sounds),
        Target("mask", "masks/x.png", _images),
        Target("tokenizer", "tokenizer.json", _texts),
        Target("openvino", "a.xml", _runs),
        Target("config", "config.json", _directory),
        Target("index", "model.safetensors.index.json", _directory),
        Target("shard", "model-00001-of-00002.safetensors", _directory),
        Target("coco", "boxes.json", _boxes),
        Target("yolo", "labels/x.txt", _boxes),
        Target("saved", "state.json", _saved_dataset),
        Target("splits", "dataset_dict.json", _saved_dataset),
        Target("arrow", "data.arrow", _saved_dataset),
        Target("streamed", "model-00001-of-00001.safetensors", _streamed),
        Target("document", "a.json", _reported),
        Target("log", "a.jsonl", _reported),
        Target("folder", "search.json", _reported),
        Target("trained", "ab12.json", _trained),
        Target("search", "search.json", _search),
        Target("trial", "ab12.json", _trial),
        Target("effect", "ab12.json", _effect),
        Target("cycles", "state.json", _cycles),
    )
    if target.kind not in NEEDS or installed(NEEDS[target.kind])
}
