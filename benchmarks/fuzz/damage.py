"""The ways in which `files.py` damages a good file: bytes, members, JSON, opcodes, fields of a graph."""

from __future__ import annotations

import functools
import io
import json
import pickle
import re
import zipfile
from random import Random
from typing import Any

import torch

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
DOCUMENTS = (
    *("session", "bench", "ledger", "latency", "jsonl", "tokenizer", "config", "index"),
    *(
        "search",
        "trial",
        "effect",
        "cycles",
        "coco",
        "saved",
        "splits",
        "document",
        "log",
        "folder",
        "trained",
    ),
)
TEXTS = ("csv", "tsv", "openvino", "yolo")
STRANGE_WORDS = [
    *("", "nan", "-inf", "1e999", "-1", "0", "2147483648", "18446744073709551616", "9" * 400, "1_0", "0x10"),
    *(
        '"',
        "'",
        ",",
        "\t",
        "\0",
        "é" * 200,
        "../../etc/passwd",
        "__import__",
        "self",
        "x",
        "[]",
        "None",
        "int",
    ),
    *(
        "torch.cat",
        "torch.conv2d",
        "torch.embedding",
        "prim.While",
        "annotate",
        "return",
        "for _0 in range(",
        "&lt;",
    ),
    *("f32", "i64", "boolean", "dynamic", "Const", "Convolution", "Gather", "Reshape", "TensorIterator"),
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


def mutated(content: bytes, kind: str, random: Random) -> bytes:
    """`content` with one to four things changed, by its own structure or byte by byte."""
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        try:
            if content[:2] == b"PK" and random.random() < 0.85:
                content = _archive(content, random)
            elif kind in ("safetensors", "shard", "streamed") and random.random() < 0.6:
                content = _header(content, random)
            elif kind in DOCUMENTS and random.random() < 0.8:
                content = _document(content, random)
            elif kind in TEXTS and random.random() < 0.8:
                content = _words(content, random)
            elif kind in ("legacy", "batches") and random.random() < 0.5:
                content = _opcodes(content, random)
            elif kind in ("source", "onnx") and random.random() < 0.8:
                content = _fields(content, random)
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
    structured = [i for i, (name, _) in enumerate(members) if name.endswith((".json", ".pkl", ".npy", ".py"))]
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
    elif name.endswith(".py") and random.random() < 0.9:
        members[index] = (name, _words(inside, random))
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


def _words(content: bytes, random: Random) -> bytes:
    """A number or a name of a text replaced by another of it, or by a strange one; or a line moved."""
    text = content.decode("utf-8")
    lines = text.splitlines(keepends=True)
    if len(lines) > 1 and random.random() < 0.15:
        lines.insert(random.randrange(len(lines)), lines.pop(random.randrange(len(lines))))
        return "".join(lines).encode()
    found = list(re.finditer(r"[\w.+-]+", text))
    if not found:
        return _flip(content, random)
    chosen = random.choice(found)
    fresh = random.choice(STRANGE_WORDS) if random.random() < 0.5 else random.choice(found)[0]
    return (text[: chosen.start()] + fresh + text[chosen.end() :]).encode()


def _document(content: bytes, random: Random) -> bytes:
    """One value of a JSON document replaced by another of it, by a strange one, or nested a thousand deep.

    Of several documents, a line each, one is changed.
    """
    if content.endswith(b"}\n") and content.count(b"\n") > 1 and content.startswith(b'{"'):
        lines = content.splitlines(keepends=True)
        index = random.randrange(len(lines))
        lines[index] = _document(lines[index].rstrip(), random) + b"\n"
        return b"".join(lines)
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


def _fields(content: bytes, random: Random) -> bytes:
    """One value anywhere in an ONNX model, of its graph's nodes above all, replaced, doubled or left out."""
    import onnx

    model = onnx.load_from_string(content)
    message: Any = random.choice([model.graph, *model.graph.node, *model.graph.initializer])
    while True:
        field, value = random.choice(message.ListFields())
        if field.type != field.TYPE_MESSAGE:
            break
        message = random.choice(value) if field.is_repeated else value
        if not message.ListFields():
            return _flip(content, random)
    if field.is_repeated:
        index, roll = random.randrange(len(value)), random.random()
        if roll < 0.1:
            del value[index]
        elif roll < 0.2:
            value.append(value[index])
        else:
            value[index] = _other(field, value[index], random)
    else:
        setattr(message, field.name, _other(field, value, random))
    return model.SerializeToString()


def _other(field: Any, old: Any, random: Random) -> Any:
    match field.cpp_type:
        case field.CPPTYPE_STRING if isinstance(old, bytes):
            return random.choice([_flip(old, random) if old else b"x", b"", b"a" * 1000])
        case field.CPPTYPE_STRING:
            names = ["", "x", "x" * 500, "Loop", "If", "Gather", "Reshape", "Expand", "Pad", "Resize", "Tile"]
            return random.choice([*names, "Range", "ConstantOfShape", "Concat", "Slice", "../../etc/passwd"])
        case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
            return random.choice([0.0, -1.0, 1e30, float("inf"), float("nan")])
    return random.choice([0, 1, -1, 2, 3, 7, 10, 11, 2**31 - 1, -(2**31)])
