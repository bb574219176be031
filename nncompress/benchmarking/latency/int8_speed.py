"""Is int8 faster *here*? The same graph in float32 and in int8, side by side in ONNX Runtime on this machine.

Int8 is not faster by itself: a CPU without dot-product instructions, small layers or ops without an int8
kernel can cost more than they save. What is compared with is the graph before `lower_int8`, its rounding
taken out (`nncompress.exporting.lower.onnxruntime.float_twin`).
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from nncompress.exporting.check.int8_coverage import FLOAT_KERNELS, INT8_KERNELS, layer_of
from nncompress.exporting.report import Int8Speed

SECONDS = 1.0  # of measuring, at most, once both have been called a few times
CALLS = (5, 40)  # at least, at most
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def int8_speed(twin: bytes, path: Path, inputs: dict[str, np.ndarray]) -> Int8Speed:
    """Measure both, interleaved in random order; where int8 is not faster, profile both.

    Args:
        inputs: one sample.
    """
    sources: dict[str, bytes | str] = {"float": twin, "int8": str(path)}
    sessions = {candidate: _session(source) for candidate, source in sources.items()}
    samples: dict[str, list[float]] = {candidate: [] for candidate in sessions}
    for each in sessions.values():
        each.run(None, inputs)
    end = time.monotonic() + SECONDS
    order = random.Random(0)
    while len(samples["int8"]) < CALLS[1] and (len(samples["int8"]) < CALLS[0] or time.monotonic() < end):
        for candidate in order.sample(list(sessions), 2):
            start = time.thread_time_ns()
            sessions[candidate].run(None, inputs)
            samples[candidate].append(time.thread_time_ns() - start)
    medians = {candidate: statistics.median(values) for candidate, values in samples.items()}
    ratio = medians["float"] / max(medians["int8"], 1)
    if ratio >= 1.05:
        return Int8Speed(ratio)
    profiles = {candidate: profile(source, inputs) for candidate, source in sources.items()}
    slower = slower_in_int8(profiles)
    total = sum(micros for _, _, micros in profiles["int8"]) or 1.0
    lost = sum(micros for _, op, micros in profiles["int8"] if op in CONVERSIONS)
    return Int8Speed(ratio, slower, lost / total)


def slower_in_int8(profiles: dict[str, list[tuple[str, str, float]]]) -> tuple[tuple[str, float], ...]:
    """(layer, float32's time over int8's) of the layers that run on integer kernels and are slower there.

    A layer that was left in float runs the same kernel in both: its ratio is noise, and not int8's.

    Args:
        profiles: of "float" and "int8", as `profile` returns them.
    """
    times: dict[str, dict[str, float]] = {candidate: defaultdict(float) for candidate in profiles}
    for candidate, rows in profiles.items():
        for name, op, micros in rows:
            if op in FLOAT_KERNELS | INT8_KERNELS:
                times[candidate][layer_of(name)] += micros
    integer = {layer_of(name) for name, op, _ in profiles["int8"] if op in INT8_KERNELS}
    ratios = {n: times["float"][n] / micros for n, micros in times["int8"].items() if n in integer and micros}
    return tuple(sorted(((n, r) for n, r in ratios.items() if 0 < r < 1), key=lambda row: row[1]))


def profile(
    source: bytes | str, inputs: dict[str, np.ndarray], calls: int = 5
) -> list[tuple[str, str, float]]:
    """(node, op, microseconds of its fastest call) of every node that runs, by the runtime's own profiler."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(source, str(Path(folder) / "profile"))
        for _ in range(calls + 1):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            found[name, event["args"]["op_name"]].append(event["dur"])
    return [(name, op, min(durations[1:])) for (name, op), durations in found.items()]


def _session(source: bytes | str, profile_to: str | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_to
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
