"""What `fuzz.py` damages and how: good files of every kind, their readers, and the ways to damage one."""

from __future__ import annotations

import functools
import io
import json
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

STRANGE = [
    *(None, True, -1, 0, 1, 2**31, 2**40, -(2**63), 2**63, 10**30, 1.5, float("inf"), float("nan"), 1e308),
    *(
        "",
        "x",
        "a b",
        "../../etc/passwd",
        "__import__('os').system('touch ran')",
        "s0",
        "aten::add",
        "\0",
        "é" * 200,
    ),
    *([], {}, [[]], {"as_int": 2**40}, {"as_none": True}, {"as_tensor": {"name": "x"}}, [1] * 50),
    *({"as_expr": {"expr_str": "Max(s0, s1) * FloorDiv(s0, 2)", "hint": {"as_int": 2**40}}},),
]
BYTES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff" * 8,
    b"\0" * 8,
    b"\x00\x00\x00\x40",
    b"(",
    b"2",
    b"\x85",
    b"R",
    b"0",
]


# --- readers: as a command reads, and then a little of what it does with what was read --------------------


def _use(model: Any) -> None:
    """As `inspect` does, and one run of a model that is as small as those here are."""
    from nncompress.analysis.cost import cost

    cost(model)
    repr(model)
    model(*model.example_inputs(batch=2))


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


def _data(path: Path) -> None:
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
    )
}


# --- good files -------------------------------------------------------------------------------------------

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


def good_files(folder: Path) -> dict[str, list[bytes]]:
    """By kind; `folder` is where what a reader needs beside its file is written."""
    from nncompress.export import write
    from nncompress.ir import Model
    from nncompress.passes.base import Context
    from nncompress.pipeline import run
    from nncompress.recipe import parse_pass

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
    ours = []
    for name, what in (
        ("a.pt2", clustered),
        ("a.onnx", model),
        ("b.safetensors", clustered),
        ("c.safetensors", model),
    ):
        write(what, folder / name)
        ours.append((folder / name).read_bytes())
    state = net.state_dict()
    wrapped = {"epoch": 3, "args": Namespace(lr=0.1), "model": state, "best": np.float64(1.0)}
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, groups=1), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2), nn.MaxPool2d(2)
    )
    modules = [net, layers, nn.Sequential(nn.Flatten(1, 2), nn.LSTM(8, 4), nn.Identity())]
    modules.append(nn.Sequential(nn.Flatten(2), nn.MultiheadAttention(64, 2), nn.Flatten()))
    step = {"pass": "prune", "settings": {"std": 1.0}, "before": {"macs": 1}, "after": {"macs": 1}}
    return {
        "pt2": [
            exported(net, x),
            ours[0],
            exported(_Sequence(), torch.randint(0, 9, (2, 5))),
            exported(_Indexing(), x),
        ],
        "module": [_stored(lambda buffer, m=module: torch.save(m, buffer)) for module in modules],
        "weights": [_stored(lambda b: torch.save(state, b)), _stored(lambda b: torch.save(wrapped, b))],
        "legacy": [_stored(lambda b: torch.save(wrapped, b, _use_new_zipfile_serialization=False))],
        "safetensors": ours[2:],
        "onnx": [ours[1]],
        "recipe": [b'[[pass]]\nname = "prune"\nstd = 0.5\nexclude = ["a*"]\n[[pass]]\nname = "share"\n'],
        "npz": [_stored(lambda b: np.savez(b, x=np.zeros((4, 3, 8, 8), np.uint8), y=np.arange(4)))],
        "image": [_png()],
        "session": [json.dumps({"chain": ["a.pt2", "b.pt2"]}).encode()],
        "checkpoint": [
            _stored(lambda b: torch.save({"schema": 1, "identity": {"model": "a"}, "state": {"w": x}}, b))
        ],
        "bench": [
            json.dumps({"schema": 1, "kind": "bench", "arms": [{"name": "a", "history": [step]}]}).encode(),
            *_records(),
        ],
    }


def _png() -> bytes:
    from PIL import Image

    return _stored(lambda buffer: Image.new("RGB", (8, 8)).save(buffer, "PNG"))


def _records() -> list[bytes]:
    """A record of `bench --json`, beside this file."""
    path = Path(__file__).with_name("fuzz_bench_record.json")
    return [path.read_bytes()] if path.exists() else []


# --- damage -----------------------------------------------------------------------------------------------


def mutated(content: bytes, kind: str, random: Random) -> bytes:
    """`content` with one to four things changed, by its own structure or byte by byte."""
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        try:
            if content[:2] == b"PK" and random.random() < 0.85:
                content = _archive(content, random)
            elif kind == "safetensors" and random.random() < 0.6:
                content = _header(content, random)
            elif kind in ("session", "bench") and random.random() < 0.7:
                content = _document(content, random)
            elif kind == "legacy" and random.random() < 0.5:
                content = _opcodes(content, random)
            else:
                content = _flip(content, random)
        except Exception:  # damaged beyond its structure by the change before
            content = _flip(content, random)
    return content


def _flip(content: bytes, random: Random) -> bytes:
    data = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 8])):
        if not data:
            return b"x"
        start = random.randrange(min(len(data), random.choice([64, 1024, len(data)])))
        length = random.choice([1, 1, 2, 8, 64, 1000])
        match random.randrange(6):
            case 0:
                data[start] ^= 1 << random.randrange(8)
            case 1:
                data[start : start + length] = random.choice(BYTES)
            case 2:
                del data[start : start + length]
            case 3:
                other = random.randrange(len(data))
                data[start:start] = data[other : other + length]
            case 4:
                data[start:start] = data[start : start + length] * random.choice([2, 50])
            case 5:
                del data[-random.randrange(1, len(data) + 1) :]
    return bytes(data)


def _archive(content: bytes, random: Random) -> bytes:
    """One member damaged, left out, doubled or renamed; the archive itself is whole."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    index = random.randrange(len(members))
    structured = [i for i, (name, _) in enumerate(members) if name.endswith((".json", ".pkl", ".npy"))]
    if structured and random.random() < 0.8:
        index = random.choice(structured)
    name, inside = members[index]
    roll = random.random()
    if roll < 0.04:
        del members[index]
    elif roll < 0.08:
        members[index] = (random.choice(["archive/data/weights/weight_7", name + "x", "../" + name]), inside)
    elif name.endswith(".json"):
        members[index] = (name, _document(inside, random))
    elif name.endswith(".pkl") and random.random() < 0.8:
        members[index] = (name, _opcodes(inside, random))
    else:
        members[index] = (name, _flip(inside, random))
    method = zipfile.ZIP_DEFLATED if random.random() < 0.03 else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as new:
        for name, inside in members:
            new.writestr(name, inside)
    return buffer.getvalue()


def _document(content: bytes, random: Random) -> bytes:
    """One value of a JSON document replaced by another of it, by a strange one, or nested a thousand deep."""
    document = json.loads(content)
    places = _places(document)
    if not places:
        return content
    *path, last = random.choice(places)
    parent = functools.reduce(lambda node, key: node[key], path, document)
    old = parent[last]
    roll = random.random()
    if roll < 0.35:
        parent[last] = functools.reduce(lambda node, key: node[key], random.choice(places), document)
    elif roll < 0.4 and isinstance(old, int):
        parent[last] = old + random.choice([-1, 1, 1000])
    elif roll < 0.45:
        return json.dumps(document).replace(json.dumps(old), "[" * 2000 + "]" * 2000, 1).encode()
    elif roll < 0.5 and isinstance(parent, dict):
        del parent[last]
    elif roll < 0.55 and isinstance(old, list):
        parent[last] = old * random.choice([2, 100])
    elif roll < 0.6 and isinstance(old, str):
        parent[last] = old + random.choice(["x", ")", "*2", "\0", "0" * 500])
    elif roll < 0.7 and isinstance(old, str) and old.startswith("torch.ops.aten."):
        parent[last] = f"torch.ops.aten.{random.choice(_operators())}"
    else:
        parent[last] = random.choice(STRANGE)
    return json.dumps(document).encode()


@functools.cache
def _operators() -> list[str]:
    names = sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::"))
    return [n.removeprefix("aten::") if "." in n else n.removeprefix("aten::") + ".default" for n in names]


def _places(node: Any, path: tuple = ()) -> list[tuple]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, item in items for place in [(*path, key), *_places(item, (*path, key))]]


def _header(content: bytes, random: Random) -> bytes:
    """The JSON header of a safetensors file, with values inside its texts too."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    meta = header.get("__metadata__", {})
    nested = [key for key, text in meta.items() if text[:1] in "{["]
    if nested and random.random() < 0.4:
        key = random.choice(nested)
        meta[key] = _document(meta[key].encode(), random).decode()
        text = json.dumps(header).encode()
    else:
        text = _document(json.dumps(header).encode(), random)
    stated = len(text) + random.choice([0] * 12 + [1, -1, 2**40])
    return (stated % 2**64).to_bytes(8, "little") + text + content[8 + length :]


def _opcodes(content: bytes, random: Random) -> bytes:
    """A number, a name or an opcode of a pickle replaced."""
    import pickletools

    try:
        found = [(op, argument, at) for op, argument, at in pickletools.genops(content)]
    except Exception:  # every opcode can be malformed
        return _flip(content, random)
    at = [position for _, _, position in found] + [len(content)]
    index = random.randrange(len(found))
    numbers = [
        i
        for i, (op, _, _) in enumerate(found)
        if op.name.startswith(("BININT", "LONG1", "BINUNICODE", "GLOBAL"))
    ]
    if numbers and random.random() < 0.7:
        index = random.choice(numbers)
    name, argument = found[index][0].name, found[index][1]
    other = random.choice(found)
    match name:
        case "GLOBAL":
            names = [
                "builtins bytearray",
                "torch.nn.modules.rnn LSTM",
                "builtins eval",
                "os system",
                "_codecs encode",
            ]
            names += [
                "torch._utils _rebuild_sparse_tensor",
                "torch FloatStorage",
                "collections Counter",
                "builtins set",
            ]
            module, _, attribute = random.choice(names).partition(" ")
            fresh = f"c{module}\n{attribute}\n".encode()
        case "BINUNICODE" if random.random() < 0.8:
            text = random.choice(
                ["stride", "x" * 300, "weight", "hidden_size", "_modules", "", "forward", "padding"]
            ).encode()
            fresh = b"X" + len(text).to_bytes(4, "little") + text
        case _ if name.startswith(("BININT", "LONG1")):
            value = random.choice(
                [0, 1, -1, 2, 10**6, 2**31 - 1, 2**40, 2**200, argument * 1000 if argument < 2**40 else 7]
            )
            fresh = pickle.dumps(value, 2)[2:-1]
        case _:
            fresh = content[at[found.index(other)] : at[found.index(other) + 1]]
    kept = 0 if random.random() < 0.1 else 1
    return content[: at[index]] + fresh + content[at[index + kept] :]
