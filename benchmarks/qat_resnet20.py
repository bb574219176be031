"""Quantization-aware training of a CIFAR ResNet-20 after `quantize`, by distillation from the original.

    python benchmarks/qat_resnet20.py DIR [--bits 8 4 3] [--epochs 2]

DIR holds resnet20.safetensors, lossless_train4660.npz (calibration and training) and lossless_test846.npz.
Every row is `nncompress quantize --weight-bits BITS`, then `nncompress train --teacher ORIGINAL
--teacher-weight 1`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nncompress
from nncompress.analysis.accuracy import evaluate, evaluate_paired
from nncompress.train import TrainSettings, train

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3])
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    original = nncompress.load(
        arguments.folder / "resnet20.safetensors",
        arch=f"{HERE / 'cifar_resnet.py'}:resnet20",
        input="1x3x32x32",
        normalize="imagenet",
    )
    images = nncompress.dataset(str(arguments.folder / "lossless_train4660.npz"), original)
    test = nncompress.dataset(str(arguments.folder / "lossless_test846.npz"), original)
    settings = TrainSettings(
        epochs=arguments.epochs, batch=64, lr=0.002, teacher_weight=1.0, crop=4, flip=True
    )
    print(f"original: {100 * (evaluate(original, test).top1 or 0):.1f} %")
    print("| weight bits | quantized | trained | difference to the original [95 %] | CPU s |")
    print("|---|---|---|---|---|")
    for bits in arguments.bits:
        model = nncompress.compress(original, [f"quantize:weight_bits={bits}"], data=images)
        started = time.process_time()
        trained, _ = train(model, images, settings, teacher=original)
        seconds = time.process_time() - started
        before, after = (100 * (evaluate(m, test).top1 or 0) for m in (model, trained))
        d = evaluate_paired(original, trained, test).difference
        difference = f"{100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
        print(f"| {bits} | {before:.1f} | {after:.1f} | {difference} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
