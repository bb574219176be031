"""Functions of an `.onnx` that call each other: thirty of them, in a few kB, are 2^30 ops written out."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncompress.errors import UnsupportedError

MOST_OPS = 2**18  # with every function in the place of its calls, as runtimes and our reader take it
_FUNCTIONS = 25  # the field of an onnx.ModelProto


def check_functions(path: Path) -> None:
    """Refuse a file whose functions, written out, are more ops than anybody waits for.

    Raises:
        UnsupportedError: saying how many.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if _FUNCTIONS not in set(_fields(content)):  # mostly: then the file need not be parsed
            return
    import onnx

    ops = ops_written_out(onnx.load(path, load_external_data=False))
    if ops > MOST_OPS:
        raise UnsupportedError(
            f"{path} has functions that are too long, written out in the places of their calls",
            got=f"{ops:,} ops",
            expected=f"at most {MOST_OPS:,}",
            remedy="export the model with fewer calls of functions",
        )


def ops_written_out(model: Any) -> int:
    """Ops of an `onnx.ModelProto` once every call of a function of its own is replaced by what that holds."""
    bodies = {(each.domain, each.name): each.node for each in model.functions}
    known: dict[tuple[str, str], int] = {}

    def count(nodes: Any) -> int:
        return sum(
            1
            + called((node.domain, node.op_type))
            + sum(count(graph.node) for a in node.attribute for graph in (a.g, *a.graphs))
            for node in nodes
        )

    def called(name: tuple[str, str]) -> int:
        if name in bodies and name not in known:
            known[name] = 0  # meanwhile: one that calls itself is refused by whoever reads it
            known[name] = count(bodies[name])
        return known.get(name, 0)

    return count(model.graph.node)


def _fields(content: mmap.mmap) -> Iterator[int]:
    """The numbers of the fields of a message, those within them not; it ends where the bytes are none."""
    at = 0
    while at < len(content):
        tag, at = _number(content, at)
        kind, size = tag & 7, {1: 8, 5: 4}.get(tag & 7, 0)
        if kind in (0, 2):
            value, at = _number(content, at)
            size = value if kind == 2 else 0
        elif not size:
            return
        yield tag >> 3
        at += size


def _number(content: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while at < len(content):
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128 or shift > 63:
            break
    return value, at
