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
from pathlib import Path

import numpy as np
from onnx import save

from nncompress.benchmarking.latency.layer_file import Chain, input_like, layer_file, weights
from nncompress.benchmarking.measure import Call, Measurement, undisturbed
from nncompress.runtimes import RUNTIMES, open_artifact
from nncompress.targets import Target

THREADS = 1
SECONDS = 2.0  # of measuring, for the chains that are open at one time
MOST_ROUNDS, FEWEST_ROUNDS = 40, 7
MOST_WEIGHTS = 64_000_000  # that are open at one time


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
    """Time chains of layers against a reference, on an input of `shape` (batch included).

    Each is in the precision of its layers: a chain in int8 takes and gives bytes, as between int8 layers.
    """
    generator = np.random.default_rng(seed)
    times: list[float] = []
    shares: list[float] = []
    for part in _parts(reference, chains):
        calls = [_call(chain, shape, target, generator) for chain in (reference, *part)]
        first, *others = _timed(calls, seed)
        times.append(float(np.median(first)))
        shares += [float(np.median(other / first)) for other in others]
    return Latencies(float(np.median(times)) * 1e-9, tuple(shares))


def medians(arms: Sequence[tuple[Chain, Target]], shape: tuple[int, ...], seed: int = 0) -> list[float]:
    """CPU seconds of one run of each chain in its target, all of them in turns."""
    generator = np.random.default_rng(seed)
    calls = [_call(chain, shape, target, generator) for chain, target in arms]
    return [float(np.median(times)) * 1e-9 for times in _timed(calls, seed)]


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
    return [np.array(each.cpu_ns, dtype=np.float64) for each in measurement.times]


def _parts(reference: Chain, chains: Sequence[Chain]) -> list[list[Chain]]:
    """All chains together, or, where their weights are large, a few at a time."""
    parts: list[list[Chain]] = [[]]
    size = beginning = weights(reference)
    for chain in chains:
        if parts[-1] and size + weights(chain) > MOST_WEIGHTS:
            parts.append([])
            size = beginning
        parts[-1].append(chain)
        size += weights(chain)
    return parts


def _call(chain: Chain, shape: tuple[int, ...], target: Target, generator: np.random.Generator) -> Call:
    (precision,) = {layer.precision for layer in chain}
    asked = precision if precision not in ("", "int8") and RUNTIMES[target.runtime].precisions else None
    with tempfile.TemporaryDirectory(prefix="nncompress-") as folder:
        path = Path(folder) / "layers.onnx"
        save(layer_file(chain, shape, target, generator), path)
        runner = open_artifact(path, THREADS, runtime=target.runtime, precision=asked)
        return runner.bind(input_like(chain, shape, generator))
