"""What a 2:4 pattern costs in accuracy, by magnitude and with the others making up for it; no training.

    python -m benchmarks.resnets.patterns DIR [--networks resnet20 resnet56]

DIR holds `resnet20-jpeg.safetensors`, `resnet56-jpeg.safetensors` and the images (`cifar10:DIR`); 512
training images show what each layer multiplies. All rows in ONNX Runtime on the 10,000 test images. The first
layer (3 inputs) has no pattern. The interval is of paired samples, 1.96 sqrt(lost + won) / 10,000.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.int8.accuracy import right
from benchmarks.networks.cifar_resnet import trained
from nncompress.exporting import write_onnx
from nncompress.passes import Context
from nncompress.passes.prune.options import Prune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'network':10}{'pattern':12}{'zeros':>8}{'top-1':>9}{'change, points':>17}{'pass, CPU s':>13}")
    for name in options.networks:
        model, test, train = trained(options.folder, name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(model, path)
            before = right(path, test)
            print(f"{name:10}{'none':12}{0:8.1%}{before.mean():9.2%}", flush=True)
            for row, data in (("magnitude", None), ("with data", train)):
                sparse = model.copy()
                started = time.process_time()
                changes = Prune(pattern="2:4").apply(sparse, Context(data=data))
                seconds = time.process_time() - started
                zeros = sum(c.numbers.get("zeros", 0) for c in changes)
                total = sum(c.numbers.get("of", 0) for c in changes)
                write_onnx(sparse, path)
                after = right(path, test)
                lost, won = int((before & ~after).sum()), int((after & ~before).sum())
                change = f"{(won - lost) / 100:+.2f} ± {1.96 * (lost + won) ** 0.5 / 100:.2f}"
                print(
                    f"{name:10}{row:12}{zeros / total:8.1%}{after.mean():9.2%}{change:>17}{seconds:13.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
