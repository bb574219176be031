"""Is 8-bit arithmetic faster? (Çallı 2017, §2.4.3, §3.3.4: inference slowed down by almost half)

The small CIFAR-10 model in 32 bits and in 8, in every runtime that is installed. torch computes the 8-bit
model's rounding in floats, so there it shows the accuracy and what simulating costs.
"""

from __future__ import annotations

import time
from importlib.util import find_spec

from nncompress.exporting import WRITERS
from nncompress.studies.approximation import CALIBRATION, compressed, samples, subject
from nncompress.studies.classifiers import QUICK_TEST
from nncompress.studies.comparison import ComparisonResult, Entry, Measured, measure
from nncompress.studies.images import open_images
from nncompress.studies.small_model import images
from nncompress.studies.study import Request, Study

RUNTIMES = {".onnx": "ONNX Runtime", ".pte": "ExecuTorch", ".pt2": "torch"}


def run(request: Request) -> ComparisonResult:
    """Quantize one trained model; the same two networks as files of every runtime.

    Raises:
        UsageError, DataError: no data, or data and model do not fit.
    """
    started = time.monotonic()
    if request.model is None:
        train, test = images(request, "quantization")
    else:  # nothing is trained: no more training images are read than calibrate
        train, test = open_images(
            request.data, "quantization", (CALIBRATION, QUICK_TEST if request.quick else None)
        )
    model, origin = subject(request, train)
    held_out = samples(test, model)
    quantized = compressed(request, model, ("quantize",), samples(train.spread(CALIBRATION), model))
    mobile = ".pte" in WRITERS and find_spec("executorch") is not None
    suffixes = [suffix for suffix in RUNTIMES if suffix != ".pte" or mobile]
    entries = [
        Entry(f"{RUNTIMES[suffix]} {bits}", [each], held_out, paper, suffix=suffix)
        for suffix in suffixes
        for bits, each, paper in (("fp32", model, {}), ("int8", quantized, PAPER))
    ]
    rows, warnings = measure(request, entries, paired=True, time_budget=6 if request.quick else 20)
    missing = () if mobile else ("ExecuTorch is not installed: pip install 'nncompress[mobile]'",)
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
    "quantization",
    "the small model in 32 and in 8 bits, per runtime",
    True,
    run,
    ("epochs", "keep", "model"),
    for_training=("epochs",),
)
