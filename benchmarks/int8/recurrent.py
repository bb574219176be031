"""What ONNX Runtime's DynamicQuantizeLSTM would be worth: LSTM layers of random weights, in float and by it.

    python -m benchmarks.int8.recurrent

Its own quantizer writes it: weights in int8, or in 7 bits (`reduce_range`) as processors without VNNI need
them, the inputs and the state of every step rounded on the range that they have. `error`: relative L2 norm of
the difference of the outputs; `speed-up`: of CPU time, medians of interleaved runs in one thread, batch 1.
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

CASES = ((64, 50), (256, 50), (512, 20))  # units, steps
RUNS = 40


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def row(units: int, steps: int, seven: bool, folder: Path) -> str:
    torch.manual_seed(0)
    x = torch.randn(steps, 1, units)
    files = folder / "float.onnx", folder / "int8.onnx"
    torch.onnx.export(torch.nn.LSTM(units, units), (x,), files[0], dynamo=False, opset_version=17)
    quantize_dynamic(files[0], files[1], weight_type=QuantType.QInt8, per_channel=seven, reduce_range=seven)
    sessions = [session(file) for file in files]
    given = {sessions[0].get_inputs()[0].name: x.numpy()}
    expected, found = (each.run(None, given)[0] for each in sessions)
    times: list[list[float]] = [[], []]
    for _ in range(RUNS):
        for each, taken in zip(sessions, times):
            begun = time.thread_time()
            each.run(None, given)
            taken.append(time.thread_time() - begun)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    faster = np.median(times[0]) / np.median(times[1])
    sizes = [file.stat().st_size for file in files]
    return f"{units}\t{steps}\t{7 if seven else 8}\t{error:.1%}\t{faster:.1f}x\t{sizes[0] / sizes[1]:.1f}x"


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    print("units\tsteps\tbits\terror\tspeed-up\tsmaller")
    for units, steps in CASES:
        for seven in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                print(row(units, steps, seven, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
