"""What can stand for a convolution? (Çallı 2017, §2.3.4 and §3.2)

Four networks that differ in the operation of their second and third layer, trained alike.
"""

from __future__ import annotations

import time
from functools import partial

from nncompress.studies.classifiers import budget, open_some, settings_for, trained_with_seeds
from nncompress.studies.comparison import ComparisonResult, Entry, Measured, measure
from nncompress.studies.images import Crops
from nncompress.studies.study import Request, Study
from nncompress.zoo.registry import architecture

PAPER_EPOCHS = 128  # 50,000 steps of 128 images, of 50,000
CIFAR10 = {  # mean / max of 10 runs, Table 3.1
    "convolution": "81.84 / 82.56",
    "kernel-composing": "81.98 / 82.51",
    "separable": "82.11 / 82.53",
    "nonlinear-separable": "82.16 / 82.75",
}
MNIST = "99 ± 0.3"


def run(request: Request) -> ComparisonResult:
    """Train all four with every seed; sizes, accuracy (mean and best) and time of one image.

    Raises:
        UsageError, DataError: no data, or not labelled images of one size.
    """
    started = time.monotonic()
    train, test = open_some(request, "convolution-alternatives")
    settings = settings_for(request, PAPER_EPOCHS, flip=train.channels == 3, lr=0.05)
    shape = (train.channels, *train.pixels.shape[1:3])
    entries = []
    for operation, figure in CIFAR10.items():
        name = f"alternatives-{operation}"
        build = partial(architecture(name).build, classes=train.classes, shape=shape)
        models = trained_with_seeds(request, name, build, train, settings)
        said = figure if train.channels == 3 else MNIST
        entries.append(Entry(operation, models, Crops(test, models[0].inputs), {"top1": said}))
    rows, warnings = measure(request, entries, time_budget=4 if request.quick else 10)
    return ComparisonResult(
        "convolution-alternatives",
        ("parameters", "macs", "top1", "seconds", "speedup"),
        rows,
        budget(request, train, settings, PAPER_EPOCHS),
        _verdict(rows),
        round(time.monotonic() - started, 1),
        ("paper: mean / max of 10 runs on CIFAR-10, 99 ± 0.3 on MNIST; it gives no times", *warnings),
    )


def _verdict(rows: tuple[Measured, ...]) -> str:
    baseline = rows[0]
    best = max(rows[1:], key=lambda row: row.mean_top1)
    fastest = max(rows[1:], key=lambda row: row.speedup.value if row.speedup else 0.0)
    assert fastest.speedup is not None
    gap = 100 * (best.mean_top1 - baseline.mean_top1)
    lost = 100 * (fastest.mean_top1 - baseline.mean_top1)
    return (
        f"{best.name} is the most accurate alternative ({gap:+.2f} points to the convolution); "
        f"{fastest.name} the fastest, {fastest.speedup.value:.2f}x at {lost:+.2f} points"
    )


CONVOLUTION_ALTERNATIVES = Study(
    "convolution-alternatives",
    "four operations in place of a 5×5 convolution, trained alike",
    True,
    run,
    ("runs", "epochs", "keep"),
)
