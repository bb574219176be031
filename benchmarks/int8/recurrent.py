"""LSTM layers of random weights in int8: by this tool and by ONNX Runtime's own quantizer, beside float.

    python -m benchmarks.int8.recurrent

Both run on DynamicQuantizeLSTM: weights in int8, or in 7 bits, the inputs and the state of every step rounded
on the range that they have. Ours: `quantize --mode dynamic`, exported for the target ort-cpu. `error`:
relative L2 norm of the difference of the outputs; `speed-up`: of CPU time, medians of interleaved runs in one
thread, batch 1; `A/A`: of the float file against itself.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from nncompress.exporting import write_onnx
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.pipeline import run
from nncompress.recipe import parse_pass
from nncompress.targets import TARGETS

CASES = ((64, 50), (256, 50), (512, 20))  # units, steps
RUNS = 40


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def write_ours(lstm: torch.nn.LSTM, x: torch.Tensor, bits: int, path: Path) -> None:
    model = Model.from_module(lstm, (x,), dynamic_batch=False)
    found, _ = run(model, [parse_pass(f"quantize:mode=dynamic,weight_bits={bits}")], Context())
    write_onnx(found, path, target=TARGETS["ort-cpu"])


def row(units: int, steps: int, bits: int, folder: Path) -> str:
    torch.manual_seed(0)
    lstm, x = torch.nn.LSTM(units, units).eval(), torch.randn(steps, 1, units)
    files = {name: folder / f"{name}.onnx" for name in ("float", "again", "theirs", "ours")}
    torch.onnx.export(lstm, (x,), files["float"], dynamo=False, opset_version=17)
    files["again"] = files["float"]
    seven = bits == 7
    options = {"weight_type": QuantType.QInt8, "per_channel": seven, "reduce_range": seven}
    quantize_dynamic(files["float"], files["theirs"], **options)
    write_ours(lstm, x, bits, files["ours"])
    sessions = {name: session(file) for name, file in files.items()}
    given = {name: {each.get_inputs()[0].name: x.numpy()} for name, each in sessions.items()}
    outputs = {name: each.run(None, given[name])[0] for name, each in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    order = np.random.default_rng(0)
    for _ in range(RUNS):
        for name in order.permutation(list(sessions)):
            begun = time.thread_time()
            sessions[name].run(None, given[name])
            times[name].append(time.thread_time() - begun)
    expected, medians = outputs["float"], {name: np.median(taken) for name, taken in times.items()}
    figures = [f"{medians['float'] / medians['again']:.2f}"]
    for name in ("theirs", "ours"):
        error = np.linalg.norm(outputs[name] - expected) / np.linalg.norm(expected)
        smaller = files["float"].stat().st_size / files[name].stat().st_size
        figures += [f"{error:.1%}", f"{medians['float'] / medians[name]:.1f}x", f"{smaller:.1f}x"]
    return "\t".join([str(units), str(steps), str(bits), *figures])


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    columns = [f"{what} {whose}" for whose in ("ORT", "ours") for what in ("error", "speed-up", "smaller")]
    print("units", "steps", "bits", "A/A", *columns, sep="\t")
    for units, steps in CASES:
        for bits in (8, 7):
            with tempfile.TemporaryDirectory() as folder:
                print(row(units, steps, bits, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
