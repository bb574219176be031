"""What each option of `quantize` is worth in accuracy: a CIFAR ResNet, its rounded graph run in torch.

    python -m benchmarks.int8.options DIR [--network resnet20] [--samples 2000]

DIR holds `resnet20-jpeg.safetensors` and the images (`cifar10:DIR`). 512 training images calibrate. "bytes"
is the share of float32's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.networks.cifar_resnet import trained
from nncompress.analysis.accuracy import evaluate
from nncompress.analysis.cost import cost
from nncompress.passes import Context
from nncompress.passes.quantize.options import Quantize

ROWS: dict[str, dict[str, object]] = {
    "static": {},
    "equalize": {"equalize": True},
    "correct-bias": {"correct_bias": True},
    "rounding=adaptive": {"rounding": "adaptive"},
    "mode=weights": {"mode": "weights"},
    "mode=dynamic": {"mode": "dynamic"},
    "4 bits, nearest": {"weight_bits": 4, "rounding": "nearest"},
    "4 bits, nearest, correct-bias": {"weight_bits": 4, "rounding": "nearest", "correct_bias": True},
    "4 bits, adaptive": {"weight_bits": 4},
    "size=0.2": {"size": 0.2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, test, train = trained(options.folder, options.network)
    print(f"{'float32':32}{evaluate(model, test, limit=options.samples).top1:9.2%}", flush=True)
    for row in options.rows:
        small = model.copy()
        Quantize(**ROWS[row]).apply(small, Context(data=train))
        top1 = evaluate(small, test, limit=options.samples).top1
        print(f"{row:32}{top1:9.2%}{cost(small).bytes / cost(model).bytes:8.3f}", flush=True)


if __name__ == "__main__":
    main()
