"""Weights beyond what one ONNX file can hold: in a file beside the graph, whose name has its digest.

    big.onnx                          names its weights' file
    big.onnx.9f86d081884c7d65.data

Two files cannot be replaced in one step. So other weights get another name: they come before the graph that
names them, and what the replaced graph named goes after it. Killed in between, the old graph has its weights.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import onnx
import onnx_ir
from onnx.external_data_helper import _get_all_tensors, uses_external_data

_DIGITS = 16


def save(model: onnx_ir.Model, file: Path) -> None:
    """Write the graph to `file`, its weights beside it."""
    onnx_ir.save(model, file, external_data="weights")
    weights = file.with_name("weights")
    named = weights.rename(file.with_name(f"{file.name}.{_digest(weights)}.data"))
    graph = onnx.load(file, load_external_data=False)
    for tensor in filter(uses_external_data, _get_all_tensors(graph)):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = named.name
    onnx.save(graph, file)


def is_ours(path: Path) -> bool:
    """Whether the file is such weights, as they were written."""
    named = re.search(rf"\.onnx\.([0-9a-f]{{{_DIGITS}}})\.data$", path.name, re.IGNORECASE)
    return named is not None and path.is_file() and not path.is_symlink() and _digest(path) == named[1]


def beside(graph: Path) -> list[Path]:
    """Files of our weights' names beside the graph; what is in them is not looked at."""
    if not graph.parent.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(graph.name)}\.[0-9a-f]{{{_DIGITS}}}\.data")
    return sorted(path for path in graph.parent.iterdir() if pattern.fullmatch(path.name))


def named_by(graph: Path, files: Iterable[Path]) -> list[Path]:
    """Those of the files whose names stand in the graph."""
    files = list(files)
    with suppress(OSError, ValueError):  # ValueError: an empty file
        if files and graph.is_file():
            with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return [each for each in files if content.find(os.fsencode(each.name)) >= 0]
    return []


def remove_replaced(graph: Path, before: Iterable[Path]) -> list[Path]:
    """Delete weights that the replaced graph named, where they are ours and no other file here names them.

    Returns:
        What else is left of such names though the graph does not name it: of an export that was killed, or of
        a graph that was moved away.
    """
    files = beside(graph)
    kept = set(named_by(graph, files))
    before = set(before)
    for path in files:
        if path in before - kept and is_ours(path) and not _is_named_elsewhere(path, files):
            path.unlink(missing_ok=True)
            kept.add(path)
    return [path for path in files if path not in kept]


def _is_named_elsewhere(path: Path, weights: list[Path]) -> bool:
    others = (other for other in path.parent.iterdir() if other not in weights)
    return any(named_by(other, [path]) for other in others)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
