"""One network in every form and runtime side by side: ours, each runtime's own, and the free baseline.

    python -m benchmarks.measurement.targets model.pt2 [more.pt2 …] --data calibration.npz [--seconds 20]

Ratios to ONNX Runtime in float32 in one interleaved run, batch 1, one thread, CPU time of the process: above
1 is faster. A/A is float32 once more. Beside them the signal-to-noise ratio of the outputs against float32's
(SQNR, dB: more is better) on samples that nothing was calibrated on. With --seconds 0, that alone. NNCF is no
dependency of ours: where it or OpenVINO is missing, its columns are.
"""

from __future__ import annotations

import argparse
import math
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
CHECKED = 32  # samples that outputs are compared on
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
    fitted, _ = records.split()  # as the pipeline does
    single = [batch.inputs[0].numpy() for batch in fitted.batches(1, limit=LIMIT)]
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


def sqnr(outputs: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """dB."""
    signal = sum(float(np.square(r, dtype=np.float64).sum()) for r in reference)
    error = sum(float(np.square(o - r, dtype=np.float64).sum()) for o, r in zip(outputs, reference))
    return 10 * math.log10(signal / error) if error else math.inf


def report(model: str, data: str, seconds: float) -> dict[str, str]:
    """Measure one network and print what each form of it gave and what ran in int8; its row of the table."""
    loaded = nncompress.load(model, data=data)
    with tempfile.TemporaryDirectory() as folder:
        arms = files_of(loaded, data, Path(folder))
        fitted, held = dataset(data, loaded).split()
        unseen = [b.inputs[0].numpy() for b in (held or fitted).batches(1, limit=CHECKED)]
        x = unseen[0]
        runners = {name: open_artifact(path, 1, runtime=runtime) for name, (path, runtime) in arms.items()}
        outputs = {name: [r.run(each)[0] for each in unseen] for name, r in runners.items()}
        noise = {name: sqnr(each, outputs["ORT float32"]) for name, each in outputs.items()}
        medians = {}
        if seconds:
            times = measured({name: runner.bind(x) for name, runner in runners.items()}, seconds)
            medians = {name: statistics.median(values) for name, values in times.items()}
            print(f"\n{Path(model).name}: {medians['ORT float32'] / 1e6:.3f} ms, {len(times['A/A'])} rounds")
        else:
            print(f"\n{Path(model).name}")
        row = {}
        for name in (n for n in ARMS if n in runners):
            ratio = f"{medians['ORT float32'] / medians[name]:.2f}x" if medians else ""
            row[name] = f"{ratio} {noise[name]:.1f} dB".strip()
            print(f"  {name:16} {row[name]:18} {kernels(runners[name], arms[name], x)}", flush=True)
        return row


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
    table = {Path(model).stem: report(model, given.data, given.seconds) for model in given.models}
    arms = [name for name in ARMS if any(name in row for row in table.values())]
    print("\n" + " | ".join([f"{'':20}", *(f"{name:16}" for name in arms)]))
    for name, row in table.items():
        print(" | ".join([f"{name:20}", *(f"{row.get(arm, ''):16}" for arm in arms)]))


if __name__ == "__main__":
    main()
