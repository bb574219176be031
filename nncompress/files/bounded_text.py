"""Small text files (recipes, records, settings), read with bounded memory and time.

    read_json("record.json")            its value: plain JSON, not deep, with 64-bit integers
    read_text("recipe.toml")            its text; then bounded(tomllib.loads(text))

A FIFO would wait for ever, a device never ends, and a document of 10^5 nested lists exhausts the stack of
whoever walks it. `Unreadable` says in a few words what was found instead; who reads turns it into an error of
its own kind, which names the file and the remedy.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 16 * 2**20
MOST_DEPTH = 32

# Not every system has all of them; O_BINARY is Windows'.
_READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_INTEGERS = range(-(2**63), 2**64)
_KINDS = [
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
]


class Unreadable(Exception):
    """What a file is instead of what it should be, in a few words: "a directory"."""


def check_regular(path: str | Path) -> int:
    """The size in bytes of the regular file at `path`, which is not opened for that.

    Raises:
        Unreadable: there is none, or it is a directory, a FIFO, a device or a socket.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    except ValueError as error:  # a null byte in the name
        raise Unreadable("a name that no file can have") from error
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable(next((what for test, what in _KINDS if test(found.st_mode)), "no regular file"))
    return found.st_size


def read_text(path: str | Path, most_bytes: int = MOST_BYTES) -> str:
    """The UTF-8 text of a regular file.

    Raises:
        Unreadable: it is missing, no regular file, larger than `most_bytes`, or not UTF-8.
    """
    stated = check_regular(path)  # 0 for files below /proc
    try:
        with open(os.open(path, _READ), "rb") as file:
            content = file.read(min(most_bytes, max(stated, 2**16)) + 1)
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    if len(content) > most_bytes:
        raise Unreadable(f"more than {most_bytes} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"no UTF-8 text (byte {error.start})") from error


def read_json(path: str | Path, most_bytes: int = MOST_BYTES, most_depth: int = MOST_DEPTH) -> Any:
    """The value of a JSON file.

    Raises:
        Unreadable: as `read_text`, or it is no JSON, or its value is not `bounded`.
    """
    return parse_json(read_text(path, most_bytes), most_depth)


def parse_json(text: str | bytes, most_depth: int = MOST_DEPTH) -> Any:
    """The value of a JSON document that is already in memory.

    Raises:
        Unreadable: it is no JSON, or its value is not `bounded`.
    """
    try:
        return bounded(json.loads(text), most_depth)
    except RecursionError as error:
        raise Unreadable(f"values nested more than {most_depth} deep") from error
    except ValueError as error:
        raise Unreadable(f"no JSON ({error})"[:200]) from error


def bounded(value: Any, most_depth: int = MOST_DEPTH) -> Any:
    """`value` itself, a document of dicts, lists and plain values, if walking and printing it is safe.

    Raises:
        Unreadable: it is nested deeper than `most_depth`, or has an integer of more than 64 bits.
    """
    level, depth = [value], 0
    while level:
        if depth > most_depth:
            raise Unreadable(f"values nested more than {most_depth} deep")
        for item in level:
            if type(item) is int and item not in _INTEGERS:
                raise Unreadable(f"an integer of {math.ceil(item.bit_length() / math.log2(10))} digits")
        level = [inner for item in level for inner in _inside(item)]
        depth += 1
    return value


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
