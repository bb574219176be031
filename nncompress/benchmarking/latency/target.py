"""Which target is fastest on this machine: one small network, timed in each, and remembered.

What passes that choose by the clock measure in where the user names no target. The network is a stack of
3×3 convolutions, in float32 as it is in the file: a target that computes floats in fewer bits by itself
gains by that here as it does for the user.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from nncompress import extras
from nncompress.benchmarking import Candidate, benchmark
from nncompress.benchmarking.latency.remembered import Remembered, machine, version
from nncompress.errors import NNCompressError, Told, UsageError
from nncompress.runtimes import RUNTIMES
from nncompress.runtimes.on_openvino import need_precision
from nncompress.targets import OURS, TARGETS, Target, target

SECONDS = 2.0
WIDTH, SIZE, DEPTH = 64, 28, 6  # channels, pixels, layers: a few ms, as one stage of a small classifier


def clocked(name: str | None) -> Target:
    """The target that latencies are measured in: the named one, or the fastest one here.

    Raises:
        UsageError: there is no such target, or nothing here runs its files on this processor.
        MissingExtraError: its runtime is not installed.
    """
    if name is None:
        return TARGETS[fastest()]
    chosen = target(name)
    if not chosen.runtime or chosen.device == "cuda":
        raise UsageError(
            f"latencies for {name} cannot be measured here",
            expected=", ".join(t.name for t in TARGETS.usable() if t.runtime and t.device != "cuda"),
            remedy="name one of these, or leave --target out; a pass has budgets without a clock (--macs), "
            f"and export --target {name} writes the result",
        )
    chosen.need()
    return chosen


def layer_clock(name: str | None) -> Target:
    """As `clocked`, for single layers: these are written as `.onnx` files.

    Raises:
        UsageError: also where the target does not read these.
    """
    chosen = clocked(name)
    if ".onnx" not in chosen.suffixes:
        raise UsageError(
            f"single layers cannot be timed in {chosen.name}",
            expected=", ".join(t.name for t in TARGETS.usable() if t.device == "cpu" and t.runtime),
            remedy="choose by another measure (--macs, --relative), or by a target of this processor",
        )
    return chosen


def floats_in(where: Target, precision: str | None) -> str | None:
    """The precision to ask its runtime for; None for one that it has by itself, or int8.

    Raises:
        UsageError: it computes floats in float32 alone.
        DeviceError: this processor does not compute in it.
    """
    asked = None if precision == "int8" else precision
    if asked is None or not RUNTIMES[where.runtime].precisions:
        if asked == "bfloat16":
            others = [t.name for t in TARGETS.usable() if t.runtime and RUNTIMES[t.runtime].precisions]
            raise UsageError(
                f"{where.runtime_name} computes floats in float32",
                got="--for bf16",
                remedy=f"--target {' or '.join(others)}, or leave --for out",
            )
        return None
    if where.runtime == "openvino":
        need_precision(asked)
    return asked


def fastest() -> str:
    """The name of the target that takes the least time."""
    measured = speeds()
    there = measured or [t.name for t in _installed() if not _fault(t)] or ["ort-cpu"]
    return min(there, key=lambda name: measured.get(name, 0.0))


@cache
def speeds() -> Mapping[str, float]:
    """Seconds of one run in each target of ours that runs `.onnx` files on this processor; the others' are
    not comparable, those of other packages run where they are named. Empty where there are not several, or
    one fails. Measured once per machine and versions, and kept in the user's cache folder."""
    there = [t for t in _installed() if not _fault(t)]
    if len(there) < 2:
        return {}
    key = {"machine": machine(), "runtimes": {t.name: version(t.runtime) for t in there}}
    file = Remembered("target-speed", key)
    known = file.read().get("seconds")
    if _is_whole(known, there):
        return known
    found = _measured(there)
    if _is_whole(found, there):
        file.write({"seconds": found})
    return found


def broken() -> dict[str, str]:
    """Targets that would be timed if their runtimes, which are installed, could be imported, and why not."""
    return {t.name: why for t in _installed() if (why := _fault(t))}


def _installed() -> list[Target]:
    return [t for t in OURS if t.device == "cpu" and ".onnx" in t.suffixes and t.installed]


def _fault(candidate: Target) -> str:
    """Why its runtime cannot be imported; "" where it can."""
    try:
        version(candidate.runtime)
    except extras.LACKING as error:  # half an installation, a library that is missing
        return str(error) or type(error).__name__
    return ""


def _measured(there: list[Target]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="nncompress-") as folder:
        path = Path(folder) / "network.onnx"
        save(_network(), path)
        candidates = [Candidate(t.name, path, runtime=t.runtime) for t in there]
        try:
            result = benchmark(candidates, time_budget=SECONDS, memory=False, energy=False)
        except NNCompressError as error:
            said = f"{error.what}: {error.got}" if error.got else error.what
            warnings.warn(f"no runtime is timed, as one fails: {said}", Told, stacklevel=2)
            return {}
    if result.interrupted:  # half a measurement is not to be remembered
        raise KeyboardInterrupt
    return {each.name: (each.cpu or each.wall).median for each in result.candidates}


def _network() -> Any:
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(DEPTH):
        weight = random.standard_normal((WIDTH, WIDTH, 3, 3), dtype=np.float32) / (3 * WIDTH**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [f"v{i}", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"v{i + 1}"]))
    shape = [1, WIDTH, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"v{DEPTH}", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _is_whole(seconds: Any, there: list[Target]) -> TypeGuard[dict[str, float]]:
    """A time for each."""
    return (
        isinstance(seconds, dict)
        and set(seconds) == {t.name for t in there}
        and all(isinstance(value, float) and 0 < value < 1e6 for value in seconds.values())
    )
