"""Int8 against float32 in ONNX Runtime, ours and the runtime's own quantizer, one thread, interleaved.

    python -m benchmarks.int8.latency [--networks resnet20 ...] [--batch N] [--seconds S]

Weights are random (latency does not depend on them). Every arm runs in the same process, in random order;
the figure is the median of the thread's CPU time per call, which other processes on the machine do not count
into, as a ratio to float32. The last arm is float32 once more: its distance from 1 is the noise.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.networks import cifar_resnet, int8_networks
from nncompress.data import Batch
from nncompress.data.input_batches import InputBatches
from nncompress.exporting import write_onnx
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.quantize.options import Quantize

NETWORKS = {  # name: (make, image size, the ratio to reach)
    "resnet20": (cifar_resnet.resnet20, 32, 1.6),
    "resnet18": (int8_networks.resnet18, 224, 2.7),
    "vgg11": (int8_networks.vgg11, 224, 3.1),
    "mobilenet_v2": (int8_networks.mobilenet_v2, 224, 1.9),
}


class Noise:
    """Calibration records that are noise."""

    def __init__(self, size: int) -> None:
        self.size = size

    def input_batches(self, batch_size: int, limit: int | None = None) -> InputBatches:
        return InputBatches.held([batch.inputs for batch in self.batches(batch_size, limit)])

    def batches(
        self, batch_size: int, limit: int | None = None, shuffle_seed: int | None = None
    ) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            yield Batch((torch.randn(4, 3, self.size, self.size, generator=generator),), None)


class NoiseReader(CalibrationDataReader):
    def __init__(self, size: int) -> None:
        self.batches = Noise(size).batches(4)

    def get_next(self) -> dict | None:
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch.inputs[0].numpy()}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def prepare(name: str, folder: Path) -> dict[str, Path]:
    """The arms: float32, ours, the runtime's own quantizer on what it prepares itself, float32 again."""
    make, size, _ = NETWORKS[name]
    network = int8_networks.settled(make(), size)
    model = Model.from_module(network, (torch.randn(2, 3, size, size),))
    model.inputs = tuple(type(i)("x", i.dtype, i.shape) for i in model.inputs)
    paths = {arm: folder / f"{name}-{arm}.onnx" for arm in ("float32", "ours", "runtime")}
    write_onnx(model, paths["float32"])
    Quantize(calibration="min-max").apply(model, Context(data=Noise(size)))
    write_onnx(model, paths["ours"])
    prepared = folder / f"{name}-prepared.onnx"
    quant_pre_process(str(paths["float32"]), str(prepared), skip_symbolic_shape=True)  # folds batch norms
    quantize_static(
        prepared,
        paths["runtime"],
        NoiseReader(size),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return {**paths, "float32 again": paths["float32"]}


def measure_files(paths: dict[str, Path], x: np.ndarray, seconds: float) -> dict[str, float]:
    """The first file's median CPU time per call over that of each."""
    samples = measure(paths, x, seconds)
    medians = {arm: statistics.median(values) for arm, values in samples.items()}
    return {arm: medians[next(iter(paths))] / value for arm, value in medians.items()}


def measure(paths: dict[str, Path], x: np.ndarray, seconds: float) -> dict[str, list[float]]:
    """CPU milliseconds of every call."""
    sessions = {arm: session(path) for arm, path in paths.items()}
    samples: dict[str, list[float]] = {arm: [] for arm in sessions}
    inputs = {arm: {each.get_inputs()[0].name: x} for arm, each in sessions.items()}
    for arm, each in sessions.items():
        for _ in range(3):
            each.run(None, inputs[arm])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for arm in random.sample(list(sessions), len(sessions)):
            start = time.thread_time_ns()
            sessions[arm].run(None, inputs[arm])
            samples[arm].append((time.thread_time_ns() - start) / 1e6)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"onnxruntime {onnxruntime.__version__}, batch {options.batch}, 1 thread, CPU time per call\n")
    print(
        f"{'network':14}{'float32 ms':>11}{'ours':>8}{'runtime':>9}{'A/A':>7}{'bar':>6}{'calls':>7}"
        "  int8 layers"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            _, size, bar = NETWORKS[name]
            paths = prepare(name, Path(folder))
            samples = measure(paths, torch.randn(options.batch, 3, size, size).numpy(), options.seconds)
            medians = {arm: statistics.median(values) for arm, values in samples.items()}
            ours, runtime, again = (
                medians["float32"] / medians[a] for a in ("ours", "runtime", "float32 again")
            )
            print(
                f"{name:14}{medians['float32']:11.2f}{ours:7.2f}x{runtime:8.2f}x{again:7.2f}{bar:6.1f}"
                f"{len(samples['ours']):7}  {int8_coverage(paths['ours']).summary()}",
                flush=True,
            )


if __name__ == "__main__":
    main()
