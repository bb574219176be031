"""Is `quantize --mode dynamic` worth it? BERT-like blocks in ONNX Runtime, one thread, interleaved.

    python -m benchmarks.int8.dynamic [--width 384] [--blocks 2] [--tokens 16 128] [--seconds S]

Weights are random (latency does not depend on them). Figures are float32's median CPU time per call at batch
1 over the mode's: above 1 is faster. A/A is float32 once more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.int8.latency import measure
from nncompress.data import Batch
from nncompress.data.input_batches import InputBatches
from nncompress.exporting import write_onnx
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.quantize.options import Quantize

MODES = ("static", "dynamic", "weights")


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each added to its normalised input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = self.norm1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Noise:
    """Calibration records."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(1))

    def input_batches(self, batch_size: int, limit: int | None = None) -> InputBatches:
        return InputBatches.held([batch.inputs for batch in self.batches(batch_size, limit)])

    def batches(self, batch_size: int, limit: int | None = None, shuffle_seed: int | None = None):
        yield Batch((self.x,), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(*(Block(options.width, options.width // 64) for _ in range(options.blocks)))
    print(
        f"{'tokens':8}{'float32 ms':>11}" + "".join(f"{mode:>9}" for mode in MODES) + "    A/A  int8 layers"
    )
    for tokens in options.tokens:
        shape = (tokens, options.width)
        model = Model.from_module(network.eval(), (torch.randn(2, *shape),))
        with tempfile.TemporaryDirectory() as folder:
            paths = {"float32": Path(folder) / "float32.onnx"}
            write_onnx(model, paths["float32"])
            for mode in MODES:
                small = model.copy()
                data = Noise(shape) if mode == "static" else None
                Quantize(mode=mode).apply(small, Context(data=data))  # type: ignore[arg-type]
                paths[mode] = Path(folder) / f"{mode}.onnx"
                write_onnx(small, paths[mode])
            paths["float32 again"] = paths["float32"]
            samples = measure(paths, torch.randn(1, *shape).numpy(), options.seconds)
            medians = {arm: statistics.median(values) for arm, values in samples.items()}
            ratios = "".join(f"{medians['float32'] / medians[mode]:8.2f}x" for mode in MODES)
            covered = ", ".join(
                f"{len(c.int8)}/{len(c.int8) + len(c.float)}"
                for c in (int8_coverage(paths[m]) for m in MODES)
            )
            again = medians["float32"] / medians["float32 again"]
            print(f"{tokens:<8}{medians['float32']:11.2f}{ratios}{again:7.2f}  {covered}", flush=True)


if __name__ == "__main__":
    main()
