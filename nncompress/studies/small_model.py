"""How small may a CIFAR-10 network be? (Çallı 2017, §2.4.1 and §3.3.1)

Six separable residual blocks against ResNet-20: half the parameters, a third of the operations.
"""

from __future__ import annotations

import time
from functools import partial

from nncompress.errors import DataError
from nncompress.studies.classifiers import (
    budget,
    framed,
    open_some,
    settings_for,
    trained_with_seeds,
)
from nncompress.studies.comparison import ComparisonResult, Entry, Measured, measure
from nncompress.studies.images import Crops, Images
from nncompress.studies.study import Request, Study
from nncompress.zoo.registry import architecture

PAPER_EPOCHS = 205  # 80,000 steps of 128 images, of 50,000
SMALL, LARGE = "small-separable", "resnet20"
PAPER = {
    SMALL: {"parameters": "0.12 M", "macs": "~13 M", "top1": "91.10"},
    LARGE: {"parameters": "0.27 M", "macs": "~40 M", "top1": "91.25"},
}
FRAME = 32  # pixels: what both are timed on


def run(request: Request) -> ComparisonResult:
    """Train both for the same number of epochs.

    Raises:
        UsageError, DataError: no data, or not labelled colour images of at least 32×32.
    """
    started = time.monotonic()
    train, test = images(request, "small-model")
    settings = settings_for(request, PAPER_EPOCHS, flip=True)
    entries = []
    for name in (LARGE, SMALL):
        build = partial(architecture(name).build, classes=train.classes)
        models = trained_with_seeds(request, name, build, train, settings)
        timed = framed(models[0], FRAME, FRAME)
        entries.append(Entry(name, models, Crops(test, models[0].inputs), PAPER[name], timed))
    rows, warnings = measure(request, entries, time_budget=4 if request.quick else 10)
    return ComparisonResult(
        "small-model",
        ("parameters", "macs", "top1", "file_size", "seconds", "speedup"),
        rows,
        budget(request, train, settings, PAPER_EPOCHS),
        _verdict(rows),
        round(time.monotonic() - started, 1),
        (
            "paper: the best of 10 runs, on the original CIFAR-10; it gives no times",
            f"{SMALL} sees the central 24×24 pixels; both are timed on images of 32×32",
            *warnings,
        ),
    )


def images(request: Request, study: str) -> tuple[Images, Images]:
    """Training and test images [32, 32, 3], fewer of them for a quick run.

    Raises:
        UsageError, DataError: no data, or other images.
    """
    train, test = open_some(request, study)
    if train.channels != 3 or min(train.pixels.shape[1:3]) < FRAME:
        raise DataError(
            f"reproduce {study}: {train.spec} does not fit",
            got="x".join(map(str, train.pixels.shape[1:])),
            expected="colour images of 32x32, as CIFAR-10 has",
        )
    return train, test


def _verdict(rows: tuple[Measured, ...]) -> str:
    large, small = rows
    assert small.speedup is not None
    parameters, macs = large.parameters / small.parameters, large.macs / small.macs
    points = 100 * (small.mean_top1 - large.mean_top1)
    return (
        f"{parameters:.1f} times fewer parameters, {macs:.1f} times fewer MACs, "
        f"{small.speedup.value:.2f}x as fast, {points:+.2f} points"
    )


SMALL_MODEL = Study(
    "small-model", "six separable residual blocks against ResNet-20", True, run, ("runs", "epochs", "keep")
)
