"""Is 8-bit arithmetic faster? (Çallı 2017, §2.4.3, §3.3.4: inference slowed down by almost half)

The small CIFAR-10 model in 32 bits and in 8, in every runtime that is installed.
"""

from __future__ import annotations

import time
from importlib.util import find_spec

from nncompress.export import WRITERS
from nncompress.studies.approximation import CALIBRATION, compressed, records, subject
from nncompress.studies.comparison import ComparisonResult, Entry, Measured, measure
from nncompress.studies.small_model import images
from nncompress.studies.study import Request, Study

RUNTIMES = {".onnx": "ONNX Runtime", ".pte": "ExecuTorch"}


def run(request: Request) -> ComparisonResult:
    """Quantize one trained model; the same two networks as files of every runtime.

    Raises:
        UsageError, DataError: no data, or data and model do not fit.
    """
    started = time.monotonic()
    train, test = images(request, "quantization")
    model, origin = subject(request, train)
    held_out = records(test, model)
    quantized = compressed(request, model, ("quantize",), records(train.spread(CALIBRATION), model))
    suffixes = [".onnx", ".pte"] if ".pte" in WRITERS and find_spec("executorch") else [".onnx"]
    entries = [
        Entry(f"{RUNTIMES[suffix]} {bits}", [each], held_out, paper, suffix=suffix)
        for suffix in suffixes
        for bits, each, paper in (("fp32", model, {}), ("int8", quantized, PAPER))
    ]
    rows, warnings = measure(request, entries, paired=True, time_budget=6 if request.quick else 20)
    missing = () if len(suffixes) > 1 else ("ExecuTorch is not installed: pip install 'nncompress[mobile]'",)
    return ComparisonResult(
        "quantization",
        ("file_size", "top1", "difference", "seconds", "speedup"),
        rows,
        origin,
        _verdict(rows),
        round(time.monotonic() - started, 1),
        (*missing, *warnings),
    )


PAPER = {"speedup": "almost half", "difference": "not significant"}


def _verdict(rows: tuple[Measured, ...]) -> str:
    texts = []
    for before, after in zip(rows[::2], rows[1::2]):
        ratio = before.seconds / after.seconds
        texts.append(f"{after.name} is {ratio:.2f}x as fast as its fp32")
    return "; ".join(texts)


QUANTIZATION = Study(
    "quantization", "the small model in 32 and in 8 bits, per runtime", True, run, ("epochs", "keep", "model")
)
