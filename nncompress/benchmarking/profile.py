"""Where the time of a run goes: one row per operator, after the runtime's own optimisation.

ONNX Runtime and OpenVINO tell their nodes (a fused convolution is one), OpenVINO with the precision that each
ran in, torch its kinds of operators; other runtimes are not asked. Profiling costs time of its own, so shares
count and not sums.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import torch

from nncompress.benchmarking.inputs import Inputs, inputs_for
from nncompress.ir import Model
from nncompress.results import OperatorTime
from nncompress.runtimes import open_artifact
from nncompress.runtimes.on_openvino import OpenVinoRunner
from nncompress.runtimes.silence import silent

RUNS = 20
WARM_UP = 3
SUFFIXES = (".onnx", ".ort")
NODE_TIME = "_kernel_time"


def profile(
    artifact: str | Path | Model,
    inputs: Inputs,
    threads: int = 1,
    *,
    runtime: str | None = None,
    precision: str | None = None,
) -> tuple[OperatorTime, ...] | None:
    """Time per operator, longest first; None where the artifact's runtime does not tell."""
    if isinstance(artifact, Model):
        found = _torch(artifact, inputs, threads)
    elif runtime == "openvino" or Path(artifact).suffix.lower() == ".xml":
        found = _openvino(Path(artifact), inputs, threads, precision)
    elif Path(artifact).suffix.lower() in SUFFIXES:
        found = _onnxruntime(Path(artifact), inputs, threads)
    else:
        return None
    return tuple(sorted(found, key=lambda row: -row.seconds))


def _onnxruntime(path: Path, inputs: Inputs, threads: int) -> list[OperatorTime]:
    runner = open_artifact(path, threads)  # which checks the file
    feed = {spec.name: array for spec, array in zip(runner.inputs, inputs_for(runner, inputs, str(path)))}
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(WARM_UP + RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return of_events(events, WARM_UP)


def _openvino(path: Path, inputs: Inputs, threads: int, precision: str | None) -> list[OperatorTime]:
    runner = OpenVinoRunner(path, threads, precision)
    arrays = inputs_for(runner, inputs, str(path))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for each in runner.times(*arrays, runs=WARM_UP + RUNS):
        times[f"{each.layer.kind} {each.layer.precision}", each.layer.name].append(each.seconds)
    return [OperatorTime(op, node, 1.0, median(all_[WARM_UP:])) for (op, node), all_ in times.items()]


def of_events(events: list[dict[str, Any]], skipped: int) -> list[OperatorTime]:
    """ONNX Runtime's trace as rows.

    Args:
        skipped: so many runs of each node are warming up.
    """
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(NODE_TIME):
            op = str(event.get("args", {}).get("op_name", "?"))
            times[op, name.removesuffix(NODE_TIME)].append(float(event["dur"]) * 1e-6)
    return [OperatorTime(op, node, 1.0, median(each[skipped:] or each)) for (op, node), each in times.items()]


def _torch(model: Model, inputs: Inputs, threads: int) -> list[OperatorTime]:
    runner = open_artifact(model, threads)
    call = runner.bind(*inputs_for(runner, inputs, "the model"))
    for _ in range(WARM_UP):
        call()
    with silent(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        for _ in range(RUNS):
            call()
    events = sorted(trace.events(), key=lambda event: event.time_range.start)
    return of_calls(((event.name, event.self_cpu_time_total * 1e-6) for event in events), RUNS)


def of_calls(calls: Iterable[tuple[str, float]], runs: int) -> list[OperatorTime]:
    """torch's operators and the seconds of each call, in the order of time, as rows."""
    times: dict[str, list[float]] = defaultdict(list)
    for name, seconds in calls:
        times[name.removeprefix("aten::")].append(seconds)
    rows = []
    for op, each in times.items():
        per_run = len(each) // runs
        if per_run * runs == len(each):  # every run made the same calls: a run that was disturbed is left out
            seconds = median(sum(each[i : i + per_run]) for i in range(0, len(each), per_run))
        else:
            seconds = sum(each) / runs
        rows.append(OperatorTime(op, "", len(each) / runs, seconds))
    return rows
