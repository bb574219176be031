"""A few good files of every kind, small, for `files.py` to damage."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.fuzz.good_data import data_files

_NET = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2))
"""


class _Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = (
            nn.Embedding(9, 4),
            nn.LSTM(4, 3, batch_first=True),
            nn.Linear(3, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(x))[0][:, -1]).softmax(-1)


class _Indexing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top, where = x.topk(2, dim=1)
        grown = nn.functional.interpolate(top.gather(1, where % 2), scale_factor=2.0)
        return torch.cat([nn.functional.pad(grown, (1, 1)).unfold(2, 3, 2).flatten(1), x.flatten(1)], 1)[
            :, ::2
        ]


def _stored(write: Callable[[Any], None]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def good_files(folder: Path, apart: bool = True) -> dict[str, list[bytes]]:
    """By kind; `folder` is where what a reader needs beside its file is written."""
    from nncompress.data import open_data
    from nncompress.exporting import write
    from nncompress.ir import Model
    from nncompress.passes.base import Context
    from nncompress.pipeline import run
    from nncompress.recipe import parse_pass
    from nncompress.train.checkpoint import SCHEMA

    torch.manual_seed(0)
    (folder / "net.py").write_text(_NET)
    scope: dict[str, Any] = {}
    exec(_NET, scope)
    net, x = scope["build"]().eval(), torch.randn(2, 3, 8, 8)
    batch = torch.export.Dim("batch", min=1, max=64)

    def exported(module: nn.Module, value: torch.Tensor) -> bytes:
        program = torch.export.export(module.eval(), (value,), dynamic_shapes=({0: batch},))
        return _stored(lambda buffer: torch.export.save(program, buffer))

    model = Model.from_module(net, (x,))
    clustered, _ = run(model, [parse_pass("cluster:codebook=4")], Context())
    np.savez(folder / "data.npz", x=x.numpy(), y=np.arange(2))
    data = open_data(str(folder / "data.npz"), model.inputs, None)
    quantized, _ = run(model, [parse_pass("quantize")], Context(data=data))
    ours = []
    for name, what in (
        ("a.pt2", clustered),
        ("a.onnx", model),
        ("b.safetensors", clustered),
        ("c.safetensors", model),
        ("d.pt2", quantized),
        ("e.onnx", Model.from_module(_Sequence().eval(), (torch.randint(0, 9, (2, 5)),))),
        ("f.onnx", Model.from_module(_Indexing().eval(), (x,))),
        ("g.ort", model),
    ):
        write(what, folder / name)
        ours.append((folder / name).read_bytes())
    write(clustered, folder / "h.pt2", storage="entropy")
    ours.append((folder / "h.pt2").read_bytes())
    state = net.state_dict()
    wrapped = {"epoch": 3, "args": Namespace(lr=0.1), "model": state, "best": np.float64(1.0)}
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, groups=1), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2), nn.MaxPool2d(2)
    )
    modules = [net, layers, nn.Sequential(nn.Flatten(1, 2), nn.LSTM(8, 4), nn.Identity())]
    modules.append(nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(64, 2, 8), nn.PReLU(3)))
    more = data_files(folder, model, net, _stored, apart)
    return {
        "pt2": [
            exported(net, x),
            ours[0],
            exported(_Sequence(), torch.randint(0, 9, (2, 5))),
            exported(_Indexing(), x),
            ours[4],
            ours[8],
        ],
        "module": [_stored(lambda buffer, m=module: torch.save(m, buffer)) for module in modules],
        "weights": [_stored(lambda b: torch.save(state, b)), _stored(lambda b: torch.save(wrapped, b))],
        "bin": [_stored(lambda b: torch.save(state, b))],
        "legacy": [_stored(lambda b: torch.save(wrapped, b, _use_new_zipfile_serialization=False))],
        "safetensors": ours[2:4],
        "onnx": [ours[1]],
        "recipe": [b'[[pass]]\nname = "prune"\nstd = 0.5\nexclude = ["a*"]\n[[pass]]\nname = "share"\n'],
        "npz": [_stored(lambda b: np.savez(b, x=np.zeros((4, 3, 8, 8), np.uint8), y=np.arange(4)))],
        "image": [_png()],
        "session": [json.dumps({"chain": ["a.pt2", "b.pt2"]}).encode()],
        "checkpoint": [
            _stored(
                lambda b: torch.save({"schema": SCHEMA, "identity": {"model": "a"}, "state": {"w": x}}, b)
            )
        ],
        "bench": [
            json.dumps(_suite().to_json()).encode(),
        ],
        "source": [ours[1], ours[5], ours[6]],
        "ort": [ours[7]],
        "ledger": [json.dumps({"files": {"trained-1.pt2": ["9f86d081"]}}).encode()],
        "latency": [
            json.dumps({"layers": {"1x3: a": {"seconds": 1e-6, "shares": {"b": 0.5, "c": 1.5}}}}).encode()
        ],
        "idx": [bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4)) + bytes(24)],
        "tar": [_tar()],
        "batches": [pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}, 2)],
        "document": [json.dumps(_suite().to_json()).encode()],
        "streamed": [_streamed(folder)],
        **more,
        "input": [b"x:Bx3x8x8,state:2xBx128", b"1x3x32x32", b"25xBx40,Bx16:int64"],
    }


def _streamed(folder: Path) -> bytes:
    """A shard of `quantize --stream` of c.safetensors."""
    from nncompress.loading.state_dict.shards import open_checkpoint
    from nncompress.recipe import parse_pass
    from nncompress.streaming import run

    run(parse_pass("quantize:mode=weights"), open_checkpoint(folder / "c.safetensors"), folder / "shards")
    return next((folder / "shards").glob("*.safetensors")).read_bytes()


def _tar() -> bytes:
    image, buffer = _png(), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("a/1.png", "b/2.png"):
            member = tarfile.TarInfo(name)
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
    return buffer.getvalue()


def _png() -> bytes:
    from PIL import Image

    return _stored(lambda buffer: Image.new("RGB", (8, 8)).save(buffer, "PNG"))


def _suite() -> Any:
    """What `bench -o` writes, of two models in two sessions of two rounds."""
    from nncompress.benchmarking.stats import latency
    from nncompress.results import BenchResult, BenchSuite, CandidateResult, Samples

    times = (1000, 1100, 900, 1000)
    arms = [
        CandidateResult(n, "torch", latency(times), None, None, None, Samples(times), sha256=n) for n in "ab"
    ]
    machine = {"cpu": "A CPU", "cores": 2, "versions": {"torch": "2.13"}}
    return BenchSuite((BenchResult(tuple(arms), 1, 1, "wall", (2, 2), 0, 0, environment=machine),))
