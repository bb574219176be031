"""What int8 costs a small trained transformer, in accuracy and in time, by mode.

    python -m benchmarks.int8.transformer DIR

DIR holds the 10,000 MNIST test digits (IDX). Two networks are trained, each on one half of them, and each is
tested on the half that it has not seen: so all 10,000 count. 512 digits of the training half calibrate. All
rows run in ONNX Runtime, on one thread. Speed is float32's median CPU time per call at batch 1 over the
row's, interleaved in random order. "lost": digits that float32 had right and the row has not; "won" the
reverse; the change of top-1 comes with its 95 % interval of paired samples, 1.96 sqrt(lost + won) / 10,000.
`--layers`: also each layer rounded alone, by how many digits change their class.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from benchmarks.int8.latency import measure_files, session
from benchmarks.networks.tiny_transformer import tiny_vit
from nncompress.data.input_batches import InputBatches
from nncompress.data.sources.mnist import read_idx
from nncompress.exporting import write_onnx
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context
from nncompress.passes.quantize.options import Quantize

ROWS = {
    "static": {},
    "dynamic": {"mode": "dynamic"},
    "weights": {"mode": "weights"},
    "4 bits": {"weight_bits": 4},
}
HALF = 5000


class Digits:
    """Images as the network takes them, in batches."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def input_batches(self, batch_size: int, limit: int | None = None) -> InputBatches:
        return InputBatches.held([batch.inputs for batch in self.batches(batch_size, limit)])

    def batches(self, batch_size: int, limit: int | None = None, shuffle_seed: int | None = None):
        from nncompress.data import Batch

        for start in range(0, min(len(self.images), limit or len(self.images)), batch_size):
            piece = slice(start, start + batch_size)
            yield Batch((self.images[piece],), self.labels[piece])


def digits(folder: Path) -> tuple[Digits, Digits]:
    """The first half and the second."""
    (images_file,) = folder.glob("*images*")
    (labels_file,) = folder.glob("*labels*")
    images = torch.from_numpy(read_idx(images_file, 3).copy())
    labels = torch.from_numpy(read_idx(labels_file, 1).copy()).long()
    x = ((images.float() / 255 - 0.1307) / 0.3081).unsqueeze(1)
    return Digits(x[:HALF], labels[:HALF]), Digits(x[HALF:], labels[HALF:])


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


def classes(path: Path, data: Digits) -> np.ndarray:
    """int [samples]: the top class of each."""
    run = session(path)
    (name,) = [value.name for value in run.get_inputs()]
    return np.concatenate(
        [run.run(None, {name: batch.inputs[0].numpy()})[0].argmax(1) for batch in data.batches(100)]
    )


def trained(data: Digits, seed: int, weights: Path | None) -> Model:
    """The transformer trained on `data`; its weights are kept in `weights`, and read where they are there."""
    torch.manual_seed(seed)
    network = tiny_vit()
    if weights is not None and weights.is_file():
        network.load_state_dict(load_file(weights))
    else:
        train(network, data)
        if weights is not None:
            save_file(network.state_dict(), weights)
    return Model.from_module(network.eval(), (torch.randn(2, 1, 28, 28),))


def rounded(model: Model, training: Digits, **settings: object) -> Model:
    small = model.copy()
    Quantize(**settings).apply(small, Context(data=training))
    return small


def report_layers(model: Model, training: Digits, testing: Digits, folder: Path) -> None:
    """How many digits change their class where one layer alone is rounded."""
    write_onnx(model, folder / "whole.onnx")
    before = classes(folder / "whole.onnx", testing)
    names = [layer.name for layer in layers(model)]
    for name in names:
        alone = rounded(model, training, keep=[other for other in names if other != name])
        write_onnx(alone, folder / "alone.onnx")
        print(f"  {name:24}{(classes(folder / 'alone.onnx', testing) != before).sum():5}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, help="folder of trained weights: read if there, else written")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--layers", action="store_true", help="also each layer rounded alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    halves = digits(options.folder)
    right: dict[str, list[np.ndarray]] = {row: [] for row in ("float32", *ROWS)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {row: folder / f"{row}.onnx" for row in right}
        for fold, (training, testing) in enumerate((halves, halves[::-1])):
            kept = options.weights and options.weights / f"tiny-vit-{fold}.safetensors"
            model = trained(training, fold, kept)
            for row, path in paths.items():
                write_onnx(model if row == "float32" else rounded(model, training, **ROWS[row]), path)
                right[row].append(classes(path, testing) == testing.labels.numpy())
                print(f"fold {fold} {row}: {right[row][-1].mean():.2%}", flush=True)
            if options.layers:
                report_layers(model, training, testing, folder)
        ratios = measure_files(paths, halves[0].images[:1].numpy(), options.seconds)
        before = np.concatenate(right["float32"])
        columns = f"{'top-1':>9}{'change, points':>17}{'lost':>6}{'won':>6}{'speed':>8}  in int8"
        print(f"{'':18}{'bytes':>10}{columns}")
        for row, path in paths.items():
            after = np.concatenate(right[row])
            lost, won = int((before & ~after).sum()), int((after & ~before).sum())
            change = (
                f"{100 * (won - lost) / len(before):+.2f} ± {196 * (lost + won) ** 0.5 / len(before):.2f}"
            )
            covered = int8_coverage(path).summary().split(";")[0]
            print(
                f"{row:18}{path.stat().st_size:10,}{after.mean():9.2%}{change:>17}{lost:6}{won:6}"
                f"{ratios[row]:7.2f}x  {covered}"
            )


if __name__ == "__main__":
    main()
