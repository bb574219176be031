"""One network in every form and runtime side by side: ours, each runtime's own, and the free baseline.

    python benchmarks/targets.py model.pt2 [more.pt2 …] --data calibration.npz [--seconds 20]

Ratios to ONNX Runtime in float32 in one interleaved run, batch 1, one thread, CPU time of the process: above
1 is faster. A/A is float32 once more. NNCF is no dependency of ours: where it or OpenVINO is missing, its
columns are.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import nncompress
from nncompress.api import dataset
from nncompress.export import int8_coverage, write
from nncompress.ir import Model
from nncompress.passes import Context, Quantize
from nncompress.pipeline import run
from nncompress.runtimes import open_artifact

LIMIT = 64  # records that each quantizer is calibrated on
ARMS = ("ORT float32", "A/A", "ORT int8", "ORT's own int8", "OV as it comes", "OV NNCF int8", "OV on ours")


class Records(CalibrationDataReader):
    """Calibration records for ONNX Runtime's quantizer."""

    def __init__(self, name: str, records: list[np.ndarray]) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = iter([{name: record} for record in records])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def files_of(model: Model, data: str, folder: Path) -> dict[str, tuple[Path, str]]:
    """Of each arm the file and the runtime; those that cannot be made are said."""
    records = dataset(data, model)
    single = [batch.inputs[0].numpy() for batch in records.batches(1, limit=LIMIT)]
    small, _ = run(model, [Quantize()], Context(data=records, limit=LIMIT))
    paths = {name: folder / f"{name}.onnx" for name in ("float", "ours", "plain", "own")}
    write(model, paths["float"])
    write(small, paths["ours"], target="ort-cpu")
    write(small, paths["plain"])
    quant_pre_process(paths["float"], folder / "prepared.onnx", skip_symbolic_shape=True)
    name = open_artifact(paths["float"]).inputs[0].name
    quantize_static(
        folder / "prepared.onnx",
        paths["own"],
        Records(name, single),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    arms = {
        "ORT float32": (paths["float"], "onnxruntime"),
        "A/A": (paths["float"], "onnxruntime"),
        "ORT int8": (paths["ours"], "onnxruntime"),
        "ORT's own int8": (paths["own"], "onnxruntime"),
    }
    if find_spec("openvino") is None:
        print("OpenVINO is not installed: pip install 'nncompress[openvino]'")
        return arms
    arms |= {
        "OV as it comes": (paths["float"], "openvino"),
        "OV on ours": (paths["plain"], "openvino"),
    }
    if find_spec("nncf") is None:
        print("NNCF is not installed, its column is left out: pip install nncf")
    else:
        arms["OV NNCF int8"] = (by_nncf(paths["float"], single, folder / "nncf.xml"), "openvino")
    return arms


def by_nncf(source: Path, records: list[np.ndarray], path: Path) -> Path:
    """OpenVINO's own quantizer, with its defaults."""
    import nncf
    import openvino

    graph = openvino.Core().read_model(str(source))
    openvino.save_model(nncf.quantize(graph, nncf.Dataset(records)), path, compress_to_fp16=False)
    return path


def measured(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[int]]:
    """Process CPU nanoseconds of each call, in random order round by round."""
    samples: dict[str, list[int]] = {name: [] for name in calls}
    order, end = random.Random(0), 0.0
    for warm in (True, False):
        end = time.monotonic() + (seconds / 5 if warm else seconds)
        while time.monotonic() < end:
            for name in order.sample(list(calls), len(calls)):
                start = time.process_time_ns()
                calls[name]()
                if not warm:
                    samples[name].append(time.process_time_ns() - start)
    return samples


def report(model: str, data: str, seconds: float) -> None:
    """Measure one network and print its line, with the error of each int8 form and what ran in int8."""
    loaded = nncompress.load(model, data=data)
    with tempfile.TemporaryDirectory() as folder:
        arms = files_of(loaded, data, Path(folder))
        x = next(iter(dataset(data, loaded).batches(1, limit=1))).inputs[0].numpy()
        runners = {name: open_artifact(path, 1, runtime=runtime) for name, (path, runtime) in arms.items()}
        first = runners["ORT float32"].run(x)[0]
        errors = {n: np.linalg.norm(r.run(x)[0] - first) / np.linalg.norm(first) for n, r in runners.items()}
        samples = measured({name: runner.bind(x) for name, runner in runners.items()}, seconds)
        medians = {name: statistics.median(values) for name, values in samples.items()}
        print(f"\n{Path(model).name}: {medians['ORT float32'] / 1e6:.3f} ms, {len(samples['A/A'])} rounds")
        for name in filter(medians.get, ARMS):
            ratio = medians["ORT float32"] / medians[name]
            ran = kernels(runners[name], arms[name], x)
            print(f"  {name:16} {ratio:6.2f}x   error {errors[name]:.4f}   {ran}")


def kernels(runner: object, arm: tuple[Path, str], x: np.ndarray) -> str:
    """In what its heavy layers run."""
    if arm[1] == "openvino":
        from nncompress.runtimes.on_openvino import summary

        return summary(runner.layers(x))  # type: ignore[attr-defined]
    return int8_coverage(arm[0]).summary().partition(";")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    for model in given.models:
        report(model, given.data, given.seconds)


if __name__ == "__main__":
    main()
