"""Quantization-aware training of a CIFAR ResNet-20 after `quantize`, by distillation from the original.

    python -m benchmarks.int8.qat DIR [--bits 4 3] [--images 3000] [--epochs 1] [--test 2000]

DIR holds train.tar.xz, test.tar.xz and resnet20-jpeg.safetensors. Every row is `nncompress quantize
--weight-bits BITS` (512 training images), then `nncompress train --teacher ORIGINAL --teacher-weight 1` on so
many training images. Differences to the original are paired, of the same test images.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nncompress
from benchmarks.networks import cifar_resnet
from nncompress import pipeline
from nncompress.analysis.accuracy import evaluate_paired
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.passes import Context, Quantize
from nncompress.train import TrainSettings, train

CALIBRATION_IMAGES = 512


def difference(original: Model, model: Model, test: Dataset, limit: int) -> str:
    """Top-1 of `model` in %, and its difference to the original with the 95 % interval, in points."""
    paired = evaluate_paired(original, model, test, limit=limit)
    d = paired.difference
    return f"{100 * paired.top1_changed:.2f}: {100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--test", type=int, default=2000)
    arguments = parser.parse_args()
    original = nncompress.load(
        arguments.folder / "resnet20-jpeg.safetensors",
        arch=f"{cifar_resnet.__file__}:resnet20",
        input="1x3x32x32",
        normalize="imagenet",
    )
    images = nncompress.dataset(f"cifar10:{arguments.folder}?split=train", original)
    test = nncompress.dataset(f"cifar10:{arguments.folder}?split=test", original)
    settings = TrainSettings(
        epochs=arguments.epochs, limit=arguments.images, batch=64, lr=0.002, teacher_weight=1.0, flip=True
    )
    print("| weight bits | quantized | then trained | CPU s to train |")
    print("|---|---|---|---|", flush=True)
    for bits in arguments.bits:
        context = Context(data=images, limit=CALIBRATION_IMAGES)
        model, _ = pipeline.run(original, [Quantize(weight_bits=bits)], context)
        before = difference(original, model, test, arguments.test)
        started = time.process_time()
        trained, _ = train(model, images, settings, teacher=original)
        seconds = time.process_time() - started
        after = difference(original, trained, test, arguments.test)
        print(f"| {bits} | {before} | {after} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
