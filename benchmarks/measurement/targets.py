"""Networks in every form and runtime side by side: ours, each runtime's own quantizer, and the free baseline.

    python -m benchmarks.networks.targets WORK --cifar DIR      # the ten networks of the table
    python -m benchmarks.measurement.targets WORK/*.pt2           # beside each NAME.pt2 its NAME.npz
    python -m benchmarks.measurement.targets WORK/*.pt2 --table   # what was measured so far

Ratios to ONNX Runtime in float32 in one interleaved run, batch 1, one thread, CPU time of the process: above
1 is faster. A/A is float32 once more. Beside them the signal-to-noise ratio of the outputs against float32's
(SQNR, dB: more is better) on samples that nothing was calibrated on and, with NAME.test.npz (x, y), the top-1
points gained on it. With NAME.cut.pt2, the same model after passes that remove nodes or ranks, that one is
quantized and measured in turns with the others. Each network's figures are kept in NAME.json: those that have
one are not measured again unless --again; forms are kept in NAME/, and made again where they are missing.

Each quantizer is used as its own documentation says for the network and this processor. Without VNNI, sums of
8-bit products overflow in 16 bits: weights take 7 bits then (ours `--weight-bits 7`, ONNX Runtime's
`reduce_range`, NNCF's `overflow_fix`). NNCF is no dependency of ours: where it or OpenVINO is missing, its
columns are.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import nncompress
from nncompress.api import dataset
from nncompress.data import Dataset
from nncompress.devices import processor
from nncompress.errors import NNCompressError
from nncompress.exporting import int8_coverage, write
from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.passes import Context, Quantize
from nncompress.pipeline import run
from nncompress.runtimes import Runner, open_artifact

CHECKED = 512  # samples that outputs are compared on at most: of 16, the SQNR has a standard error of 1.7 dB
BITS = 7 if processor().saturates else 8
EVERY_LAYER = Quantize(weight_bits=BITS, every_layer=True)
BY_CLOCK = Quantize(
    weight_bits=BITS
)  # as `quantize --target` is typed: what is slower in int8 stays in floats
FLOAT = "ORT float32"
ORT, OV = "onnxruntime", "openvino"
TRANSFORMER = {"layer_norm", "scaled_dot_product_attention"}  # networks with both, for NNCF


@dataclass(frozen=True)
class Form:
    """One column: a file in the network's folder, and what runs it."""

    file: str
    runtime: str
    ours: bool = False  # quantized and written by us
    target: str | None = None
    quantized_for: str | None = None  # as `quantize --target`
    cut: bool = False  # of NAME.cut.pt2
    by_clock: bool = False  # layers that are slower in int8 stay in floats


FORMS = {
    FLOAT: Form("float.onnx", ORT),
    "A/A": Form("float.onnx", ORT),
    "ORT ours": Form("ort.onnx", ORT, True, "ort-cpu"),
    "ORT ours, clock": Form("ort-clock.onnx", ORT, True, "ort-cpu", "ort-cpu", by_clock=True),
    "ORT ours, cut": Form("ort-cut.onnx", ORT, True, "ort-cpu", cut=True),
    "ORT's own": Form("own.onnx", ORT),
    "OV as it comes": Form("float.onnx", OV),
    "OV NNCF": Form("nncf.xml", OV),
    "OV ours": Form("openvino.onnx", OV, True, "openvino", "openvino"),
    "OV ours, clock": Form("openvino-clock.onnx", OV, True, "openvino", "openvino", by_clock=True),
    "OV ours, cut": Form("openvino-cut.onnx", OV, True, "openvino", "openvino", cut=True),
    "OV plain": Form("plain.onnx", OV, True),
}


class Records(CalibrationDataReader):
    """Calibration records for ONNX Runtime's quantizer."""

    def __init__(self, name: str, records: list[np.ndarray]) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = iter([{name: record} for record in records])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def make(form: Form, model: Model, data: Dataset, folder: Path, limit: int) -> None:
    """Write the file of one column, calibrated on `limit` records."""
    path, source = folder / form.file, folder / "float.onnx"
    if form.ours:
        small = folder / f"{form.quantized_for or 'any'}{'-cut' * form.cut}{'-clock' * form.by_clock}.pt2"
        if not small.exists():
            context = Context(data=data, limit=limit, target=form.quantized_for)
            nncompress.export(run(model, [BY_CLOCK if form.by_clock else EVERY_LAYER], context)[0], small)
        write(nncompress.load(small), path, target=form.target)
    elif path == source:
        write(model, path)
    else:
        fitted, _ = data.split()  # as our pipeline does
        records = [batch.inputs[0].numpy() for batch in fitted.batches(1, limit=limit)]
        (by_nncf if form.runtime == OV else by_onnxruntime)(source, records, path, model)


def by_onnxruntime(source: Path, records: list[np.ndarray], path: Path, model: Model) -> None:
    prepared = path.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        path,
        Records(model.inputs[0].name, records),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=BITS < 8,
    )


def by_nncf(source: Path, records: list[np.ndarray], path: Path, model: Model) -> None:
    """OpenVINO's own quantizer. Ranges around a zero point for all but relu networks, as its guide says."""
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    ops = {op_name(node) for node in model.graph.nodes}
    relu = ops.isdisjoint({"silu", "hardswish", "gelu", "layer_norm"})
    graph = nncf.quantize(
        openvino.Core().read_model(str(source)),
        nncf.Dataset(records),
        subset_size=len(records),
        preset=nncf.QuantizationPreset.PERFORMANCE if relu else nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if ops >= TRANSFORMER else None,
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if BITS < 8 else OverflowFix.DISABLE
        ),
    )
    openvino.save_model(graph, path, compress_to_fp16=False)


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


def right(runner: Runner, tests: Dataset) -> np.ndarray:
    """bool [samples]"""
    found = [
        runner.run(batch.inputs[0].numpy())[0].argmax(-1) == batch.labels.numpy()  # type: ignore[union-attr]
        for batch in tests.batches(1)
    ]
    return np.concatenate(found)


def kernels(runner: Any, path: Path, x: np.ndarray) -> str:
    """In what its heavy layers run."""
    if runner.runtime == OV:
        from nncompress.runtimes.on_openvino import summary

        return summary(runner.layers(x))
    return int8_coverage(path).summary().partition(";")[0]


def opened(model: Model, data: Dataset, folder: Path, limit: int) -> Iterator[tuple[str, Runner]]:
    """Each column that can be had here, its file made where it is missing; the others are said."""
    for name, form in FORMS.items():
        wanted = {OV: ["openvino"], ORT: []}[form.runtime] + ["nncf"] * (name == "OV NNCF")
        absent = [package for package in wanted if find_spec(package) is None]
        if absent:
            print(f"{name}: left out: pip install {' '.join(absent)}")
            continue
        cut = folder.with_suffix(".cut.pt2")
        if form.cut and not cut.exists():
            continue
        try:
            if not (folder / form.file).exists():
                make(form, nncompress.load(cut) if form.cut else model, data, folder, limit)
            yield name, open_artifact(folder / form.file, 1, runtime=form.runtime)
        except NNCompressError as refused:
            print(f"{name}: left out: {refused}")


def measure(path: Path, data: str, seconds: float, limit: int) -> dict[str, Any]:
    """Measure one network: milliseconds in float32, rounds, and the figures of each column."""
    model = nncompress.load(path, data=data)
    records, folder = dataset(data, model), path.with_suffix("")
    folder.mkdir(exist_ok=True)
    runners = dict(opened(model, records, folder, limit))
    fitted, held = records.split()
    tests = path.with_suffix(".test.npz")
    labelled = dataset(str(tests), model) if tests.exists() else None
    checked = labelled or held or fitted
    unseen = [batch.inputs[0].numpy() for batch in checked.batches(1, limit=CHECKED)]
    outputs = {name: [r.run(x)[0].copy() for x in unseen] for name, r in runners.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, each in outputs.items():
        ran = kernels(runners[name], folder / FORMS[name].file, unseen[0])
        rows[name] = {"sqnr": sqnr(each, outputs[FLOAT]), "kernels": ran}
    if labelled is not None:
        correct = {name: right(r, labelled) for name, r in runners.items() if name != "A/A"}
        for name, hits in correct.items():
            rows[name]["points"] = 100 * float(hits.mean() - correct[FLOAT].mean())
    times = measured({name: runner.bind(unseen[0]) for name, runner in runners.items()}, seconds)
    medians = {name: statistics.median(values) / 1e6 for name, values in times.items()}
    for name, value in medians.items():
        rows[name]["ratio"] = medians[FLOAT] / value
    return {"milliseconds": medians[FLOAT], "rounds": len(times[FLOAT]), "columns": rows}


def cell(found: dict[str, Any]) -> str:
    """ "1.54x 31.2 dB −0.10" """
    points = f" {found['points']:+.2f}" if "points" in found else ""
    noise = "" if math.isinf(found["sqnr"]) or found["sqnr"] > 90 else f" {found['sqnr']:.1f} dB"
    return f"{found['ratio']:.2f}x{noise}{points}"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each network."""
    columns = [n for n in FORMS if n != FLOAT and any(n in found["columns"] for found in results.values())]
    lines = [["", "float32", *columns], ["---"] * (len(columns) + 2)]
    for name, found in results.items():
        cells = [cell(found["columns"][c]) if c in found["columns"] else "–" for c in columns]
        lines.append([name, f"{found['milliseconds']:.1f} ms", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", type=Path)
    parser.add_argument("--data", help="calibration data of all of them [default: NAME.npz]")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--limit", type=int, default=64, help="records each quantizer is calibrated on")
    parser.add_argument("--again", action="store_true", help="measure those that have figures, too")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    given = parser.parse_args()
    results = {}
    for path in given.models:
        kept = path.with_suffix(".json")
        if not given.table and (given.again or not kept.exists()):
            found = measure(path, given.data or str(path.with_suffix(".npz")), given.seconds, given.limit)
            kept.write_text(json.dumps(found, indent=1))
            print(f"{path.stem}: {found['milliseconds']:.2f} ms, {found['rounds']} rounds")
            for name, row in found["columns"].items():
                print(f"  {name:16}{cell(row):24}{row['kernels']}", flush=True)
        if kept.exists():
            results[path.stem] = json.loads(kept.read_text())
    print(table(results))


if __name__ == "__main__":
    main()
