"""What an int8 convolution of ONNX Runtime takes by its channels, and an average pool as a convolution.

    python -m benchmarks.int8.channels

Each row is a network of one op, 20 times in a row, against the same with the channels that
`nncompress.exporting.lower.onnxruntime.int8.channels` would give it; first layers and pools stand there once,
with what is before them. One thread, batch 1, interleaved in random order, medians of CPU time. Above 1: the
second form is faster.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROUNDS = 60
REPEATS = 20


@dataclass
class Graph:
    """int8 ops one after the other on [1, channels, size, size]."""

    channels: int
    size: int

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.stored: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.input = self.channels
        self.step, self.zero = self.store(np.float32(0.02)), self.store(np.uint8(120))
        self.last = "rounded"
        self.nodes.append(helper.make_node("QuantizeLinear", ["x", self.step, self.zero], [self.last]))

    def store(self, content: np.ndarray | np.generic) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(content), f"stored{len(self.stored)}"))
        return self.stored[-1].name

    def add(self, op: str, inputs: list[str], **attributes: object) -> None:
        result = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [result], **attributes))
        self.last = result

    def convolve(
        self, outputs: int, kernel: int, groups: int = 1, stride: int = 1, padding: int | None = None
    ) -> None:
        shape = (outputs, self.channels // groups, kernel, kernel)
        weight = self.store(self.random.integers(-127, 128, shape).astype(np.int8))
        scale, zero = self.store(np.full(outputs, 1e-3, np.float32)), self.store(np.zeros(outputs, np.int8))
        bias = self.store(np.zeros(outputs, np.int32))
        inputs = [self.last, self.step, self.zero, weight, scale, zero, self.step, self.zero, bias]
        pads = [kernel // 2 if padding is None else padding] * 4
        self.add(
            "QLinearConv", inputs, group=groups, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads
        )
        self.channels = outputs

    def pool(self, kernel: int, stride: int) -> None:
        self.add("DequantizeLinear", [self.last, self.step, self.zero])
        self.add("AveragePool", [self.last], kernel_shape=[kernel] * 2, strides=[stride] * 2)
        self.add("QuantizeLinear", [self.last, self.step, self.zero])

    def pad_to(self, channels: int) -> None:
        pads = self.store(np.array([0, 0, 0, 0, 0, channels - self.channels, 0, 0]))
        self.add("Pad", [self.last, pads, self.zero])
        self.channels = channels

    def session(self) -> onnxruntime.InferenceSession:
        nodes = [*self.nodes, helper.make_node("DequantizeLinear", [self.last, self.step, self.zero], ["y"])]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, self.input, self.size, self.size])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        model = helper.make_model(
            helper.make_graph(nodes, "ops", [x], [y], self.stored),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def microseconds(graphs: dict[str, Graph]) -> dict[str, float]:
    sessions = {name: graph.session() for name, graph in graphs.items()}
    inputs = {
        name: {"x": np.random.default_rng(1).normal(size=(1, g.input, g.size, g.size)).astype(np.float32)}
        for name, g in graphs.items()
    }
    samples: dict[str, list[int]] = {name: [] for name in graphs}
    order = random.Random(0)
    for _ in range(ROUNDS):
        for name in order.sample(list(graphs), len(graphs)):
            start = time.thread_time_ns()
            sessions[name].run(None, inputs[name])
            samples[name].append(time.thread_time_ns() - start)
    return {name: statistics.median(values) / 1e3 for name, values in samples.items()}


def chain(channels: int, size: int, kernel: int, *, depthwise: bool) -> Graph:
    graph = Graph(channels, size)
    for _ in range(REPEATS):
        graph.convolve(channels, kernel, channels if depthwise else 1)
    return graph


def up(channels: int, step: int) -> int:
    return -(-channels // step) * step


def row(what: str, before: float, after: float) -> None:
    print(f"{what:<52} {before:8.1f} {after:8.1f} {before / after:7.2f}x", flush=True)


def main() -> None:
    print(f"{'microseconds, each op':<52} {'as it is':>8} {'ours':>8}")
    for size, kernel, several in ((24, 3, (8, 24, 40, 72, 120)), (12, 5, (24, 40, 72)), (48, 3, (24, 40))):
        for channels in several:
            graphs = {
                "is": chain(channels, size, kernel, depthwise=True),
                "ours": chain(up(channels, 16), size, kernel, depthwise=True),
            }
            found = microseconds(graphs)
            row(
                f"depthwise {kernel}x{kernel}, {channels} -> {up(channels, 16)} channels, {size}x{size}",
                found["is"] / REPEATS,
                found["ours"] / REPEATS,
            )
    for channels in (22, 38, 70):
        graphs = {
            "is": chain(channels, 24, 1, depthwise=False),
            "ours": chain(up(channels, 4), 24, 1, depthwise=False),
        }
        found = microseconds(graphs)
        row(
            f"dense 1x1, {channels} -> {up(channels, 4)} channels, 24x24",
            found["is"] / REPEATS,
            found["ours"] / REPEATS,
        )
    for channels in (16, 32, 40, 48, 64, 88, 120):
        graphs = {
            "is": chain(channels, 24, 1, depthwise=True),
            "ours": chain(channels, 24, 1, depthwise=False),
        }
        found = microseconds(graphs)
        row(
            f"depthwise 1x1 -> diagonal, {channels} channels, 24x24",
            found["is"] / REPEATS,
            found["ours"] / REPEATS,
        )
    for channels, size, kernel in ((1, 28, 5), (3, 24, 3), (3, 32, 3), (6, 32, 3)):
        graphs = {"is": Graph(channels, size), "ours": Graph(channels, size)}
        graphs["ours"].pad_to(up(channels, 4))
        for graph in graphs.values():
            graph.convolve(32, kernel)
        found = microseconds(graphs)
        row(
            f"first {kernel}x{kernel}, {channels} -> {up(channels, 4)} channels, {size}x{size}",
            found["is"],
            found["ours"],
        )
    for channels, size, kernel, stride in ((40, 24, 2, 2), (64, 56, 2, 2), (96, 14, 3, 1), (128, 16, 4, 4)):
        graphs = {name: Graph(8, size) for name in ("without", "is", "ours")}
        for name, graph in graphs.items():
            graph.convolve(channels, 1)
            if name == "is":
                graph.pool(kernel, stride)
            elif name == "ours":
                graph.convolve(channels, kernel, channels, stride, 0)
        found = microseconds(graphs)
        row(
            f"average pool {kernel}x{kernel} -> depthwise, {channels}, {size}x{size}",
            found["is"],
            found["ours"],
        )


if __name__ == "__main__":
    main()
