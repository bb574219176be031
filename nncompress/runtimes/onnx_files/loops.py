"""Loops of an `.onnx` that would not end in anybody's time: a file of 150 bytes may ask for 2^40 turns."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nncompress.errors import UnsupportedError

MOST_OPS = 2**22  # of a run, those of loops in every turn
ENDLESS = 2**62  # from where on a number of turns means none: the loop's condition ends it


def check_loops(path: Path) -> None:
    """Refuse a file that states more turns of loops than anybody waits for.

    Loops that are ended by their condition are not known: see `ended_in_time`.

    Raises:
        UnsupportedError: saying how many ops that would be.
    """
    if not _has_loop(path):  # mostly: then the file need not be parsed, nor the parser imported
        return
    import onnx

    ops = stated_ops(onnx.load(path, load_external_data=False).graph)
    if ops > MOST_OPS:
        raise UnsupportedError(
            f"{path} has loops that are not run: they take too many turns",
            got=f"{ops:,} ops in a run",
            expected=f"at most {MOST_OPS:,}",
            remedy="export the model with fewer turns",
        )


def _has_loop(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"Loop") >= 0


def stated_ops(graph: Any, outside: Mapping[str, int] = MappingProxyType({})) -> int:
    """Ops of one run of an `onnx.GraphProto`, those of loops as often as the file states turns.

    Args:
        outside: numbers that the graphs around it hold.
    """
    from onnx import numpy_helper

    known = dict(outside)
    constants = [(n.output[0], a.t) for n in graph.node for a in n.attribute if n.op_type == "Constant"]
    for name, stored in [*((each.name, each) for each in graph.initializer), *constants]:
        if stored.data_type == stored.INT64 and len(stored.dims) <= 1 and not stored.external_data:
            value = numpy_helper.to_array(stored)
            if value.size == 1:
                known[name] = int(value.item())
    count = 0
    for node in graph.node:
        turns = known.get(node.input[0], 1) if node.op_type == "Loop" and node.input else 1
        inner = sum(stated_ops(each, known) for a in node.attribute for each in (a.g, *a.graphs))
        count += 1 + inner * (turns if 0 <= turns < ENDLESS else 1)
    return count


@contextmanager
def ended_in_time(options: Any, seconds: float | None) -> Iterator[None]:
    """Within, a run with these `onnxruntime.RunOptions` ends after so many seconds.

    Raises:
        UnsupportedError: it was ended.
    """
    if seconds is None:
        yield
        return
    late = threading.Event()

    def end() -> None:
        late.set()
        options.terminate = True

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise UnsupportedError(
                f"the model has loops, and does not end within {seconds:g} s",
                got="a loop whose condition stays true, or takes very many turns",
                remedy="export the model without the loop",
            ) from error
        raise
    finally:
        timer.cancel()
        options.terminate = False
