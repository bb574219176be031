"""What int8 costs a small trained transformer, in accuracy and in time, by mode.

    python benchmarks/int8_transformer.py DIR [--weights FILE]

DIR holds the 10,000 MNIST test digits (IDX): 8,000 train it for 5 epochs (two minutes; kept in FILE), 2,000
test it. All rows run in ONNX Runtime, on one thread. Speed is float32's median CPU time per call at batch 1
over the row's, interleaved in random order. "lost": digits that float32 had right and the row has not; "won"
the reverse.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from int8_latency import measure_files, session
from safetensors.torch import load_file, save_file
from tiny_transformer import tiny_vit
from torch import nn
from torch.nn import functional as F

from nncompress.data.mnist import read_idx
from nncompress.export import int8_coverage, write_onnx
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.quantize import Quantize

ROWS = {
    "static": {},
    "dynamic": {"mode": "dynamic"},
    "weights": {"mode": "weights"},
    "float16": {"mode": "float16"},
    "4 bits": {"weight_bits": 4},
    "4 bits, adaptive": {"weight_bits": 4, "rounding": "adaptive"},
}


class Digits:
    """Images as the network takes them, in batches."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def batches(self, batch_size: int, limit: int | None = None, shuffle_seed: int | None = None):
        from nncompress.data import Batch

        for start in range(0, min(len(self.images), limit or len(self.images)), batch_size):
            piece = slice(start, start + batch_size)
            yield Batch((self.images[piece],), self.labels[piece])


def digits(folder: Path) -> tuple[Digits, Digits]:
    """8,000 to train, 2,000 to test."""
    (images_file,) = folder.glob("*images*")
    (labels_file,) = folder.glob("*labels*")
    images = torch.from_numpy(read_idx(images_file, 3).copy())
    labels = torch.from_numpy(read_idx(labels_file, 1).copy()).long()
    x = ((images.float() / 255 - 0.1307) / 0.3081).unsqueeze(1)
    return Digits(x[:8000], labels[:8000]), Digits(x[8000:], labels[8000:])


def train(network: nn.Module, data: Digits, epochs: int = 5, batch: int = 64) -> None:
    steps = epochs * len(data.images) // batch
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(data.images), (batch,))
        loss = F.cross_entropy(network(data.images[chosen]), data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def right(path: Path, data: Digits) -> np.ndarray:
    """bool [records]: the top class is the label."""
    run = session(path)
    (name,) = [value.name for value in run.get_inputs()]
    found = [
        run.run(None, {name: batch.inputs[0].numpy()})[0].argmax(1) == batch.labels.numpy()
        for batch in data.batches(100)
    ]
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, help="trained weights: read if there, else written")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    training, testing = digits(options.folder)
    network = tiny_vit()
    if options.weights is not None and options.weights.is_file():
        network.load_state_dict(load_file(options.weights))
    else:
        train(network, training)
        if options.weights is not None:
            save_file(network.state_dict(), options.weights)
    model = Model.from_module(network.eval(), (torch.randn(2, 1, 28, 28),))
    with tempfile.TemporaryDirectory() as folder:
        paths = {"float32": Path(folder) / "float32.onnx"}
        write_onnx(model, paths["float32"])
        for row, settings in ROWS.items():
            small = model.copy()
            Quantize(**settings).apply(small, Context(data=training))
            paths[row] = Path(folder) / f"{row}.onnx"
            write_onnx(small, paths[row])
        ratios = measure_files(paths, testing.images[:1].numpy(), options.seconds)
        before = right(paths["float32"], testing)
        print(f"{'':18}{'bytes':>10}{'top-1':>9}{'lost':>6}{'won':>6}{'speed':>8}  products in int8")
        for row, path in paths.items():
            after = right(path, testing)
            covered = int8_coverage(path).summary().split(";")[0]
            print(
                f"{row:18}{path.stat().st_size:10,}{after.mean():9.2%}{(before & ~after).sum():6}"
                f"{(after & ~before).sum():6}{ratios[row]:7.2f}x  {covered}"
            )


if __name__ == "__main__":
    main()
