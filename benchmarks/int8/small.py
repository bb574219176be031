"""From which size on int8 pays: stacks of equal layers, int8 against float32 in ONNX Runtime.

    python -m benchmarks.int8.small

One thread, batch 1, float32's median CPU time per call over int8's; above 1 int8 is faster. The bound below
which `quantize` warns (`nncompress.passes.quantize.small`) lies under the smallest layer that gains.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nncompress
from nncompress.benchmarking.latency.int8_speed import int8_speed
from nncompress.exporting import write
from nncompress.ir import Model

DEPTH = 6
CONVOLUTIONS = ((8, 8), (8, 16), (16, 8), (16, 16), (32, 8), (32, 16), (64, 8), (64, 16))  # channels, pixels
PRODUCTS = (
    (16, 1),
    (32, 1),
    (64, 1),
    (128, 1),
    (256, 1),
    (512, 1),
    (32, 16),
    (64, 16),
    (128, 16),
)  # width, rows


def convolutions(width: int, size: int) -> tuple[nn.Module, torch.Tensor]:
    layers = [each for _ in range(DEPTH) for each in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(2, width, size, size)


def products(width: int, rows: int) -> tuple[nn.Module, torch.Tensor]:
    layers = [each for _ in range(DEPTH) for each in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(2, width) if rows == 1 else torch.randn(2, rows, width)


def speed(module: nn.Module, example: torch.Tensor, folder: Path) -> float:
    model = Model.from_module(module.eval(), (example,))
    np.savez(folder / "records.npz", x=torch.randn(32, *example.shape[1:]).numpy())
    small = nncompress.compress(model, ["quantize"], data=str(folder / "records.npz"))
    return write(small, folder / "model.onnx", time_int8=int8_speed).int8_speedup or float("nan")


def row(what: str, macs: int, made: tuple[nn.Module, torch.Tensor], folder: Path) -> None:
    print(f"| {what} | {macs:,} | {speed(*made, folder):.2f}x |", flush=True)


def main() -> None:
    torch.manual_seed(0)
    print("| layers | multiply-adds each | int8 |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for width, size in CONVOLUTIONS:
            row(
                f"3×3, {width} channels, {size}²",
                9 * width * width * size * size,
                convolutions(width, size),
                folder,
            )
        for width, rows in PRODUCTS:
            row(
                f"linear, {width} to {width}, {rows} rows",
                width * width * rows,
                products(width, rows),
                folder,
            )


if __name__ == "__main__":
    sys.exit(main())
