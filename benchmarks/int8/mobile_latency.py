"""ExecuTorch with XNNPACK against ONNX Runtime, float32 and int8, one thread, interleaved.

    python -m benchmarks.int8.mobile_latency [--networks resnet20 ...] [--seconds S]

Weights are random (latency does not depend on them). Every file was run and compared with the graph when it
was written. Figures are ratios to ONNX Runtime in float32, with their 95 % interval; above 1 is faster.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.int8.latency import NETWORKS, Noise
from benchmarks.networks.int8_networks import settled
from nncompress.benchmarking import Candidate, benchmark
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.quantize.options import Quantize

BARS = {"resnet20": 1.9}  # of int8 in ExecuTorch
SUFFIXES = (".onnx", ".pte")


def prepare(name: str, folder: Path) -> tuple[list[Candidate], str]:
    """A file per precision and format, float32 in ONNX Runtime first; what ExecuTorch runs in int8."""
    make, size, _ = NETWORKS[name]
    model = Model.from_module(settled(make(), size), (torch.randn(2, 3, size, size),))
    quantized = model.copy()
    Quantize(calibration="min-max").apply(quantized, Context(data=Noise(size)))
    arms = []
    for precision, each in (("float32", model), ("int8", quantized)):
        for suffix in SUFFIXES:
            path = folder / f"{name}.{precision}{suffix}"
            coverage = write(each, path).int8
            arms.append(Candidate(f"{precision} {suffix}", path))
    return arms, coverage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chosen = ["resnet20", "mobilenet_v2", "resnet18"]
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=chosen)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            arms, coverage = prepare(name, Path(folder))
            result = benchmark(arms, time_budget=options.seconds, memory=False)
        print(f"{name}, {NETWORKS[name][1]}², batch 1, 1 thread; int8 in ExecuTorch: {coverage}")
        for arm in result.candidates:
            s = arm.speedup
            ratio = "1" if s is None else f"{s.value:.2f}x [{s.low:.2f}, {s.high:.2f}]"
            bar = f"  bar {BARS[name]}x" if arm.name == "int8 .pte" and name in BARS else ""
            size = f"{arm.file_size / 1e6:.2f} MB"
            print(
                f"  {arm.runtime:24}{arm.name:16}{size:>10}{1e3 * arm.latency.median:9.3f} ms  {ratio}{bar}",
                flush=True,
            )
        for warning in result.warnings:
            print(f"  {warning}")


if __name__ == "__main__":
    main()
