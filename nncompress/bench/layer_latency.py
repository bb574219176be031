"""How long single layers take in ONNX Runtime on this machine, for passes that choose by speed.

Fewer multiplications can take longer: kernels work on blocks of channels, and every layer has a cost of its
own. Chains of layers with random weights are timed in one interleaved run, one thread, by that thread's CPU
time; wall-clock time misleads on a busy machine.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROUNDS = 25  # calls of every chain that are timed
WARM_UP = 3
OPSET = 20


@dataclass(frozen=True)
class LayerShape:
    """One layer.

    Attributes:
        op: ONNX op: "Conv", "ConvTranspose", or "MatMul" (its weight [in, out]).
        weight: shape of the weight.
        attributes: of the node, as pairs.
    """

    op: str
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, tuple[int, ...] | int], ...] = ()


Chain = tuple[LayerShape, ...]


def measure(chains: Sequence[Chain], shape: tuple[int, ...], seed: int = 0) -> list[float]:
    """Median CPU seconds of each chain of layers on an input of `shape` (batch included)."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape, dtype=np.float32)
    sessions = [_session(chain, shape, generator) for chain in chains]
    for session in sessions:
        for _ in range(WARM_UP):
            session.run(None, {"x": x})
    times: list[list[int]] = [[] for _ in chains]
    order = list(range(len(chains)))
    shuffle = random.Random(seed)
    for _ in range(ROUNDS):
        shuffle.shuffle(order)
        for index in order:
            start = time.thread_time_ns()
            sessions[index].run(None, {"x": x})
            times[index].append(time.thread_time_ns() - start)
    return [float(np.median(each)) * 1e-9 for each in times]


def _session(
    chain: Chain, shape: tuple[int, ...], generator: np.random.Generator
) -> onnxruntime.InferenceSession:
    nodes, weights, value = [], [], "x"
    for index, layer in enumerate(chain):
        weight = generator.standard_normal(layer.weight, dtype=np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        made = f"v{index}"
        attributes: dict[str, Any] = dict(layer.attributes)
        nodes.append(helper.make_node(layer.op, [value, f"w{index}"], [made], **attributes))
        value = made
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
