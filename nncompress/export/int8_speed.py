"""Is int8 faster *here*? The same graph in float32 and in int8, side by side in ONNX Runtime on this machine.

Int8 is not faster by itself: a CPU without dot-product instructions, small layers or ops without an int8
kernel can cost more than they save. What is compared with is the graph before `lower_int8`, its rounding
taken out.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from nncompress.export.check.int8_coverage import FLOAT_KERNELS, INT8_KERNELS, layer_of

SECONDS = 1.0  # of measuring, at most, once both have been called a few times
CALLS = (5, 40)  # at least, at most
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


@dataclass(frozen=True)
class Speed:
    """What was measured at batch 1 on one thread.

    Attributes:
        ratio: float32's median CPU time per call over int8's: above 1, int8 is faster.
        slower: where it is not faster, (layer, float32's time over int8's) of those on integer kernels that
            are below 1, worst first.
        conversions: and the share of int8's time that goes into rounding and back.
    """

    ratio: float
    slower: tuple[tuple[str, float], ...] = ()
    conversions: float = 0.0

    def summary(self) -> str:
        """ "1.78x as fast as float32 here", or why not."""
        text = f"{self.ratio:.2f}x as fast as float32 here (batch 1, one thread)"
        if self.ratio < 1.05:
            if self.slower:
                named = ", ".join(f"{name} ({ratio:.2f}x)" for name, ratio in self.slower[:3])
                text += f"; slower in int8: {named}" + (", …" if len(self.slower) > 3 else "")
            if self.conversions:
                text += f"; {self.conversions:.0%} of its time is rounding to int8 and back"
        return text


def float_twin(model: ir.Model) -> bytes:
    """The file of an exported model, not yet lowered, with its rounding taken out: float32 throughout."""
    ranks = {v.name: len(v.shape) for n in model.graph for v in n.inputs if v is not None and v.shape}
    proto = ir.serde.serialize_model(model)
    graph = proto.graph
    del graph.value_info[:]
    rounded = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    scales = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        quantize = node.op_type == "QuantizeLinear"
        if quantize or (node.op_type == "DequantizeLinear" and node.input[0] in rounded):
            nodes.append(helper.make_node("Identity", [node.input[0]], [node.output[0]]))
        elif node.op_type == "DequantizeLinear" and node.input[1] in scales:
            scale = onnx.numpy_helper.to_array(scales[node.input[1]])
            if scale.ndim == 2:  # weights by groups
                graph.initializer.append(_computed(node, scale, scales))
            else:
                nodes += _multiplied(graph, node, scale, ranks.get(node.input[0], 1))
        elif node.op_type != "DynamicQuantizeLinear":  # nobody reads its scale any more
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return proto.SerializeToString()


def _computed(
    node: onnx.NodeProto, scale: np.ndarray, stored: dict[str, onnx.TensorProto]
) -> onnx.TensorProto:
    """A weight by groups in floats."""
    codes, *zeros = (onnx.numpy_helper.to_array(stored[each]) for each in (node.input[0], *node.input[2:]))
    rows = codes.reshape(*scale.shape, -1).astype(np.float32)
    if zeros:
        rows = rows - zeros[0][..., None]
    return onnx.numpy_helper.from_array((rows * scale[..., None]).reshape(codes.shape), node.output[0])


def _multiplied(
    graph: onnx.GraphProto, node: onnx.NodeProto, scale: np.ndarray, rank: int
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """A weight's `Cast, Mul`, which ONNX Runtime computes when it loads the file."""
    (result,) = node.output
    if scale.ndim:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % rank
        scale = scale.reshape([-1 if d == axis else 1 for d in range(rank)])
    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(scale), f"{result}_factor"))
    return (
        helper.make_node("Cast", [node.input[0]], [f"{result}_cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{result}_cast", f"{result}_factor"], [result]),
    )


def int8_speed(twin: bytes, path: Path, inputs: dict[str, np.ndarray]) -> Speed:
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
        return Speed(ratio)
    profiles = {candidate: profile(source, inputs) for candidate, source in sources.items()}
    slower = slower_in_int8(profiles)
    total = sum(micros for _, _, micros in profiles["int8"]) or 1.0
    lost = sum(micros for _, op, micros in profiles["int8"] if op in CONVERSIONS)
    return Speed(ratio, slower, lost / total)


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
