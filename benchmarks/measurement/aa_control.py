"""A/A control: the same file twice. Does the interval of the ratio contain 1 as often as it says?

    python -m benchmarks.measurement.aa_control [model.onnx] [--runs 20] [--time 3]

A 95 % interval should cover 1 in 19 of 20 runs on average; the script ends with exit code 1 below 18 of 20.
Every run is also compared with the run before it as `bench --compare` does, with the file as its own control
and without one: nothing changed, so every regression found is a false alarm.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from nncompress.benchmarking import Candidate, baseline, benchmark
from nncompress.results import BenchResult, BenchSuite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--time", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or small_network(Path(folder) / "small.onnx")
        arms = [Candidate("A", path), Candidate("A again", path)]
        covered = 0
        alarms = {"with a control": 0, "without": 0}
        previous: BenchResult | None = None
        for run in range(arguments.runs):
            result = benchmark(
                arms, batch=arguments.batch, time_budget=arguments.time, memory=False, seed=run
            )
            ratio = result.candidates[1].speedup
            covered += 1.0 in ratio
            print(
                f"{run + 1:3d}  {1e3 * result.candidates[0].latency.median:7.3f} ms  ratio {ratio.value:.4f} "
                f"[{ratio.low:.4f}, {ratio.high:.4f}]  {'covers 1' if 1.0 in ratio else 'MISSES 1'}"
                f"{'  (warned)' if result.warnings else ''}",
                flush=True,
            )
            if previous is not None:
                alarms["with a control"] += false_alarm(previous, result)
                alarms["without"] += false_alarm(alone(previous), alone(result))
            previous = result
        print(f"{covered} of {arguments.runs} intervals cover 1")
        for how, count in alarms.items():
            print(f"--compare of run and run before, {how}: {count} of {arguments.runs - 1} false alarms")
    return 0 if covered >= 0.9 * arguments.runs else 1


def false_alarm(then: BenchResult, now: BenchResult) -> bool:
    """Does `bench --compare` see a regression with its usual tolerance?"""
    result = baseline.compare((baseline.of(then),), BenchSuite((now,)), name="the run before")
    return bool(result.regressions)


def alone(result: BenchResult) -> BenchResult:
    """As if the second model had been measured without the first."""
    return replace(result, candidates=result.candidates[1:])


def small_network(path: Path) -> Path:
    """Five 3x3 convolutions of 32 channels on 3x32x32: about 0.4 ms a call."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i, channels in enumerate((3, 32, 32, 32, 32)):
        weight = generator.standard_normal((32, channels, 3, 3)).astype(np.float32) / (3 * channels**0.5)
        weights.append(onnx.numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        value = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32, 1, 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


if __name__ == "__main__":
    sys.exit(main())
