"""How long single layers take in a target on this machine, for passes that choose by speed.

Fewer multiplications can take longer: kernels work on blocks of channels, and every layer has a cost of its
own. Chains of layers with random weights are timed against the layer that they would replace, in turns, with
one thread, by that thread's CPU time; wall-clock time misleads on a busy machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from nncompress.bench.measure import Call, Measurement, undisturbed
from nncompress.runtimes import open_artifact
from nncompress.targets import Target

THREADS = 1
SECONDS = 2.0  # of measuring, for the chains that are open at one time
MOST_ROUNDS, FEWEST_ROUNDS = 40, 7
MOST_WEIGHTS = 64_000_000  # that are open at one time
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

    def __str__(self) -> str:
        """ "Conv 16x3x3x3 strides=1,1 pads=1,1,1,1 group=1"."""
        texts = (
            f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in self.attributes
        )
        return " ".join([self.op, "x".join(map(str, self.weight)), *texts])


Chain = tuple[LayerShape, ...]


@dataclass(frozen=True)
class Latencies:
    """What `measure` returns.

    Attributes:
        reference: CPU seconds of one run of the reference: the median.
        shares: of each chain, its time as a share of the reference's: the median over rounds, each of which
            visits both.
    """

    reference: float
    shares: tuple[float, ...]


def measure(
    reference: Chain, chains: Sequence[Chain], shape: tuple[int, ...], target: Target, seed: int = 0
) -> Latencies:
    """Time chains of layers against a reference, on an input of `shape` (batch included)."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape, dtype=np.float32)
    times: list[float] = []
    shares: list[float] = []
    for part in _parts(reference, chains):
        calls = [_call(chain, x, target, generator) for chain in (reference, *part)]
        first, *others = _timed(calls, seed)
        times.append(float(np.median(first)))
        shares += [float(np.median(other / first)) for other in others]
    return Latencies(float(np.median(times)) * 1e-9, tuple(shares))


def _timed(calls: Sequence[Call], seed: int) -> list[np.ndarray]:
    """CPU nanoseconds of each call, [rounds]."""
    with undisturbed():
        measurement = Measurement(calls, seed=seed, by_cpu=True)
        measurement.warm_up()
        end = time.perf_counter() + SECONDS
        while measurement.rounds < FEWEST_ROUNDS or (
            measurement.rounds < MOST_ROUNDS and time.perf_counter() < end
        ):
            measurement.round()
    return [np.array(arm.cpu_ns, dtype=np.float64) for arm in measurement.times]


def _parts(reference: Chain, chains: Sequence[Chain]) -> list[list[Chain]]:
    """All chains together, or, where their weights are large, a few at a time."""
    parts: list[list[Chain]] = [[]]
    size = beginning = _weights(reference)
    for chain in chains:
        if parts[-1] and size + _weights(chain) > MOST_WEIGHTS:
            parts.append([])
            size = beginning
        parts[-1].append(chain)
        size += _weights(chain)
    return parts


def _weights(chain: Chain) -> int:
    return sum(prod(layer.weight) for layer in chain)


def _call(chain: Chain, x: np.ndarray, target: Target, generator: np.random.Generator) -> Call:
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
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    with tempfile.TemporaryDirectory(prefix="nncompress-") as folder:
        path = Path(folder) / "layers.onnx"
        save(model, path)
        return open_artifact(path, THREADS, runtime=target.runtime).bind(x)
