"""Does `bench` agree with `onnxruntime_perf_test` on the same file?

    python -m benchmarks.measurement.perf_test_agreement [model.onnx] [--pairs 10] [--seconds 2]

`onnxruntime_perf_test` is not in the onnxruntime wheel, so its measurement is written out here, in a process
of its own as the tool is: one session on one thread, one call to warm up, then calls of the same random input
one after the other, and the median of their wall-clock times. It takes turns with `bench`. Each pair gives a
ratio of the two medians; exit code 1 where the 95 % interval of their geometric mean excludes 1 and the mean
is more than 2 % away.

Both read the same clocks, so the comparison is made twice: by the wall clock, as the tool does, and by the
thread's CPU time, which on a busy machine is the one that repeats.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.measurement.aa_control import small_network
from nncompress.benchmarking import Candidate, benchmark, stats

AGREE = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--as-the-tool-does", action="store_true", help="only that, as JSON")
    arguments = parser.parse_args()
    if arguments.as_the_tool_does:
        print(json.dumps(perf_test(arguments.model, arguments.seconds)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or small_network(Path(folder) / "small.onnx")
        pairs = []
        for pair in range(arguments.pairs):
            ours = benchmark(
                [Candidate("a", path)], time_budget=arguments.seconds, memory=False, seed=pair
            ).candidates[0]
            tool = in_own_process(path, arguments.seconds)
            pairs.append([(ours.wall.median, tool["wall_s"]), (ours.cpu.median, tool["cpu_s"])])
            print(
                f"{pair + 1:3d}  bench / perf_test: wall {1e3 * ours.wall.median:.3f} / "
                f"{1e3 * tool['wall_s']:.3f} ms, CPU {1e3 * ours.cpu.median:.3f} / "
                f"{1e3 * tool['cpu_s']:.3f} ms",
                flush=True,
            )
    agree = True
    for clock, which in (("wall", 0), ("CPU", 1)):
        ours, tool = ([[each[which][side] * 1e9] for each in pairs] for side in (0, 1))
        ratio = stats.speedup(ours, tool)  # every pair is a session of one round
        apart = 1.0 not in ratio and abs(ratio.value - 1) > AGREE
        agree = agree and not apart
        print(
            f"{clock:4s}  bench / perf_test {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]: "
            f"{'differ' if apart else 'agree within noise'}"
        )
    return 0 if agree else 1


def in_own_process(path: Path, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", __spec__.name, str(path), "--as-the-tool-does"]
    command += ["--seconds", str(seconds)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def perf_test(path: Path, seconds: float) -> dict[str, float]:
    """`onnxruntime_perf_test -e cpu -x 1 -y 1 -t seconds model.onnx`: medians in seconds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    feed = {
        node.name: generator.random([d if isinstance(d, int) else 1 for d in node.shape], np.float32)
        for node in session.get_inputs()
    }
    session.run(None, feed)
    wall, cpu = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started, started_cpu = time.perf_counter_ns(), time.thread_time_ns()
        session.run(None, feed)
        cpu.append(time.thread_time_ns() - started_cpu)
        wall.append(time.perf_counter_ns() - started)
    return {"wall_s": float(np.median(wall)) / 1e9, "cpu_s": float(np.median(cpu)) / 1e9}


if __name__ == "__main__":
    sys.exit(main())
