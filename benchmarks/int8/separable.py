"""What int8 costs a trained depthwise-separable network: CIFAR-10's test images, in every runtime, paired.

    nncompress reproduce small-model --data cifar10:DIR --keep models          (trains it)
    python -m benchmarks.int8.separable models/small-separable-0.pt2 cifar10:DIR [--formats .onnx .pte]

512 training images calibrate. The interval of the change is of paired samples, 1.96 sqrt(lost + won) / n.
`--layers`: also each layer rounded alone, by how many images change their class. `--norms`: only how far the
outputs of 1,000 images move, ‖y' − y‖ / ‖y‖ in torch, by where batch norms that cannot be folded run.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import nncompress
from nncompress.data import Dataset
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.ir.edit.fold import norm_names
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context
from nncompress.passes.quantize.equalization import condition
from nncompress.passes.quantize.options import Quantize
from nncompress.runtimes import open_artifact
from nncompress.studies.images import Crops, open_images

CALIBRATION = 512


def classes(model: Model, path: Path, data: Dataset) -> np.ndarray:
    """int [samples]: the top class of each, by the file in its runtime."""
    write(model, path)
    run = open_artifact(path).run
    return np.concatenate([run(*batch.inputs)[0].argmax(1) for batch in data.batches(50)])


def norms(model: Model, train: Dataset, test: Dataset) -> None:
    """Print what batch norms in int8 cost, with and without a scale per channel in front of them."""
    batches = [batch.inputs for batch in test.batches(250, limit=1000)]
    expected = torch.cat([model.outputs_of(*inputs)[0].detach() for inputs in batches])
    one_scale = patch.object(condition, "scale_channels", lambda *_: 0)
    forms: dict[str, tuple[tuple[str, ...], Any]] = {
        "in int8, a scale per channel": ((), nullcontext()),
        "in int8, one scale": ((), one_scale),
        "in float, one scale": (tuple(norm_names(model)), one_scale),
    }
    for name, (keep, how) in forms.items():
        quantized = model.copy()
        with how:
            Quantize(keep=keep).apply(quantized, Context(data=train))
        got = torch.cat([quantized.outputs_of(*inputs)[0].detach() for inputs in batches])
        print(f"batch norms {name:32}{float((got - expected).norm() / expected.norm()):9.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--formats", nargs="+", default=[".onnx", ".pte"])
    parser.add_argument("--layers", action="store_true", help="also each layer rounded alone")
    parser.add_argument("--norms", action="store_true", help="only by where batch norms run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = nncompress.load(options.model)
    train, test = (Crops(i, model.inputs) for i in open_images(options.data, "it", (CALIBRATION, None)))
    if options.norms:
        norms(model, train, test)
        return
    labels = np.concatenate(
        [batch.labels.numpy() for batch in test.batches(1000) if batch.labels is not None]
    )
    quantized = model.copy()
    Quantize().apply(quantized, Context(data=train))
    print(f"{len(labels)} images\n{'':8}{'float32':>9}{'int8':>9}{'change, points':>17}{'lost':>6}{'won':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in options.formats:
            found = [
                classes(m, Path(folder) / f"{i}{suffix}", test) for i, m in enumerate((model, quantized))
            ]
            before, after = (each == labels for each in found)
            lost, won = int((before & ~after).sum()), int((after & ~before).sum())
            change, interval = 100 * (won - lost) / len(labels), 196 * (lost + won) ** 0.5 / len(labels)
            figures = (
                f"{before.mean():9.2%}{after.mean():9.2%}{change:+10.2f} ± {interval:.2f}{lost:6}{won:6}"
            )
            print(f"{suffix:8}{figures}", flush=True)
        if options.layers:
            whole = classes(model, Path(folder) / "whole.onnx", test)
            names = [layer.name for layer in layers(model)]
            for name in names:
                alone = model.copy()
                keep = tuple(other for other in names if other != name)
                Quantize(keep=keep).apply(alone, Context(data=train))
                print(
                    f"  {name:24}{(classes(alone, Path(folder) / 'a.onnx', test) != whole).sum():5}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
