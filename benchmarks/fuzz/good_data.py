"""Good files of data, of `save_pretrained`, of OpenVINO and of searches, for `files.py` to damage.

What belongs beside a file of a kind is written to `BESIDE/KIND`, and lies around every damaged file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nncompress.extras import installed

BESIDE = Path("beside")
_TABLE = "a,b,c,label\n1,2.5,-3,cat\n4,5,6,dog\n7,8,9,cat\n"
_ROW = {"x": [[0.5, 1], [2, 3]], "y": 1}


class _Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = [1, 2]
        for size in sizes:
            if x.shape[2] > size:
                x = torch.relu(x) * float(size)
        return self.layer(x).flatten(1)


def data_files(
    folder: Path, model: Any, net: nn.Module, stored: Callable[..., bytes], apart: bool
) -> dict[str, list[bytes]]:
    """By kind; as `good_files`.

    Args:
        model, net: one network, loaded and as a module, of images 3x8x8.
        stored: what a function writes to a file.
        apart: OpenVINO is not used in this process: its threads do not live on in the forks of it that read.
    """
    x = torch.randn(2, 3, 8, 8)
    traced, scripted = torch.jit.trace(net, x), torch.jit.script(_Scripted().eval())
    found = {
        "torchscript": [stored(lambda b, m=m: torch.jit.save(m, b)) for m in (traced, scripted)],
        "csv": [_TABLE.encode(), b"\xef\xbb\xbf" + _TABLE.replace("cat", '"a, ""cat"""').encode()],
        "tsv": [_TABLE.replace(",", "\t").encode()],
        "jsonl": [(json.dumps(_ROW) + "\n").encode() * 3],
        "tensors": [
            stored(lambda b: torch.save({"x": x, "y": torch.arange(2)}, b)),
            stored(lambda b: torch.save((x, torch.arange(2)), b)),
            stored(lambda b: torch.save((x, None), b, _use_new_zipfile_serialization=False)),
        ],
        "wav": [_sound(stored, width) for width in (1, 2, 3, 4)],
        "mask": [_mask(stored)],
        "search": [json.dumps(_SETTINGS).encode()],
        "trial": [json.dumps(_TRIAL).encode()],
        "effect": [
            json.dumps({"error": 0.1, "macs": 0.5, "bytes": 0.5, "parameters": 0.2, "said": ""}).encode()
        ],
        "cycles": [json.dumps({"identity": {"model": "a"}, "state": _STATE}).encode()],
    }
    for kind in ("mask", "coco", "yolo"):
        (BESIDE / kind / "images").mkdir(parents=True)
        (BESIDE / kind / "images/x.png").write_bytes(_mask(stored))
    found |= _boxes_and_records()
    if installed("parquet"):
        found["parquet"] = _parquet(folder)
        found |= _saved(folder)
    if installed("openvino"):
        found["openvino"] = _openvino(model, folder, apart)
    if installed("text"):
        found["tokenizer"] = _tokenizer(folder)
    if installed("huggingface"):
        found |= _pretrained(folder)
    return found


_SETTINGS = {
    "schema": 1, "kind": "search", "model": "ab12", "directory": ".", "data": "data.npz",
    "fit": "data.npz?half=1", "normalize": None, "limit": 9, "seed": 0,
    "bounds": {"drop": 0.1, "goal": "macs", "target": None, "metric": "top1"},
}  # fmt: skip
_TRIAL = {
    "recipe": [{"name": "prune", "std": 0.5}, {"name": "prune-nodes", "ratios": ["a=0.5"]}], "worker": "a:1",
    "macs": 0.5, "size": 100, "lost": -0.1, "at_most": 0.2, "samples": 9, "seconds": 1.5,
    "latency": {"ab12": {"share": 0.5, "low": 0.4, "high": 0.6, "seconds": 1e-4}},
}  # fmt: skip
_STATE = {
    "rows": [{"cycle": 1, "loss": 0.5}], "current": "trained-1.pt2", "best": "trained-1.pt2",
    "best_loss": 0.5,
    "ratio": None, "retried": 0, "stopped": "",
}  # fmt: skip


def _boxes_and_records() -> dict[str, list[bytes]]:
    """Boxes of images, and what commands left for `report` and for those that go on."""
    coco = {
        "images": [{"id": 1, "file_name": "x.png"}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2.5, 2], "iscrowd": 0}],
    }
    (BESIDE / "folder/trials").mkdir(parents=True)
    (BESIDE / "folder/trials/ab12.json").write_text(json.dumps(_TRIAL))
    logs = [{"epoch": 1, "loss": 0.5, "seconds": 1.0}, {"epoch": 2, "loss": 0.25, "seconds": 1.0}]
    return {
        "coco": [json.dumps(coco).encode()],
        "yolo": [b"0 0.5 0.5 0.2 0.2\n3 0.1 0.1 0.1 0.1\n"],
        "log": ["".join(json.dumps(row) + "\n" for row in logs).encode()],
        "folder": [json.dumps(_SETTINGS).encode()],
        "trained": [json.dumps({"epochs": 2, "limit": None, "teacher_weight": 0.9}).encode()],
    }


def _saved(folder: Path) -> dict[str, list[bytes]]:
    """What the datasets library writes: an Arrow stream, what lists it, what lists splits."""
    import pyarrow

    table = pyarrow.table({"x": [[1.0, 2.0], [3.0, 4.0]], "y": [0, 1]})
    file = str(folder / "data.arrow")
    with pyarrow.OSFile(file, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    state = json.dumps({"_data_files": [{"filename": "data.arrow"}], "_split": "train"})
    splits = json.dumps({"splits": ["train"]})
    for kind, place in (("saved", "."), ("arrow", "."), ("splits", "train")):
        (BESIDE / kind / place).mkdir(parents=True)
        shutil.copy(folder / "data.arrow", BESIDE / kind / place / "data.arrow")
        (BESIDE / kind / place / "state.json").write_text(state)
    content = (folder / "data.arrow").read_bytes()
    return {"saved": [state.encode()], "splits": [splits.encode()], "arrow": [content]}


def _sound(stored: Callable[..., bytes], width: int) -> bytes:
    def write(buffer: Any) -> None:
        with wave.open(buffer, "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(width)
            file.setframerate(8000)
            file.writeframes(bytes(range(24 * width)))

    return stored(write)


def _mask(stored: Callable[..., bytes]) -> bytes:
    from PIL import Image

    return stored(lambda buffer: Image.new("P", (8, 8), 1).save(buffer, "PNG"))


def _parquet(folder: Path) -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    columns = {"x": [[1.0, 2.0], [3.0, 4.0]] * 5, "label": ["a", "b"] * 5}
    for number, compression in enumerate(("none", "snappy")):
        parquet.write_table(pyarrow.table(columns), folder / f"{number}.parquet", compression=compression)
    return [(folder / f"{number}.parquet").read_bytes() for number in range(2)]


def _openvino(model: Any, folder: Path, apart: bool) -> list[bytes]:
    from nncompress.exporting import write

    if apart:
        write(model, folder / "a.pt2")
        command = [sys.executable, "-m", "nncompress", "export", "a.pt2", "-o", "a.xml"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    else:
        write(model, folder / "a.xml")
    (BESIDE / "openvino").mkdir(parents=True)
    shutil.copy(folder / "a.bin", BESIDE / "openvino/a.bin")
    return [(folder / "a.xml").read_bytes()]


def _tokenizer(folder: Path) -> list[bytes]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = []
    for number, (model, trainer) in enumerate(
        (
            (
                models.WordLevel(unk_token="[UNK]"),
                trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]"]),
            ),
            (models.BPE(), trainers.BpeTrainer(vocab_size=30, special_tokens=["[PAD]"])),
        )
    ):
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.train_from_iterator(["a good film", "a bad one"] * 3, trainer)
        tokenizer.save(str(folder / f"tokenizer-{number}.json"))
        made.append((folder / f"tokenizer-{number}.json").read_bytes())
    (BESIDE / "tokenizer").mkdir(parents=True)
    (BESIDE / "tokenizer/texts.csv").write_text("text,y\na good film,1\na bad one,0\n")
    return made


def _pretrained(folder: Path) -> dict[str, list[bytes]]:
    """A BERT in two shards: its configuration, the list of its shards, one of these."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=30, max_position_embeddings=40, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder / "bert", max_shard_size="3kB")
    files = {"config": "config.json", "index": "model.safetensors.index.json"}
    files["shard"] = sorted(path.name for path in (folder / "bert").glob("*.safetensors"))[0]
    for kind in files:
        shutil.copytree(folder / "bert", BESIDE / kind)
    return {kind: [(folder / "bert" / name).read_bytes()] for kind, name in files.items()}
