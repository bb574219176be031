"""How far the outputs on images that nothing was fitted to are, after a repair on few samples.

    python -m benchmarks.resnets.few_samples CIFAR_FOLDER

CIFAR_FOLDER holds resnet20.safetensors, lossless_train4660.npz, lossless_test846.npz. The second network is a
perceptron of 512 inputs and random weights; its samples lie near 64 directions, as real ones do.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.networks.trained_resnet import trained_resnet
from nncompress import api, pipeline
from nncompress.analysis.distance.drift import Reference, Samples, amount
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.passes import Context, Factorize, Pass, PruneNodes

PASSES: list[Pass] = [PruneNodes(macs=0.7), Factorize(macs=0.6)]


def main() -> None:
    print("network     samples  pass         outputs away, held out")
    model, train, test = trained_resnet("resnet20", Path(sys.argv[1]))
    images = next(iter(test.batches(128, 128))).inputs
    report("resnet20", model, train, images)
    torch.manual_seed(0)
    layers = [nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)]
    directions = torch.randn(64, 512)
    x = torch.randn(192, 64) @ directions / 8 + 0.1 * torch.randn(192, 512)
    perceptron = Model.from_module(nn.Sequential(*layers).eval(), (x[:2],))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npz"
        np.savez(path, **{perceptron.inputs[0].name: x[:80].numpy()})
        report("perceptron", perceptron, api.dataset(str(path), perceptron), (x[80:],))


def report(name: str, model: Model, data: Dataset, images: Any) -> None:
    reference = Reference(model, Samples((tuple(images),), (len(images[0]),), "held-out"), name)
    for count in (16, 64):
        for each in PASSES:
            result, (step,) = pipeline.run(model, [each], Context(data=data, limit=count))
            moved = amount(reference.drift(result, name))
            print(f"{name:10}  {count:7}  {each.name:11} {moved:10.1%}", flush=True)
            for warning in step.warnings:
                print(f"    {warning}", flush=True)


if __name__ == "__main__":
    main()
