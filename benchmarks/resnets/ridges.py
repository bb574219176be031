"""Does it matter by how much a second moment is lifted before it is inverted? On two trained networks.

    python -m benchmarks.resnets.ridges [--cifar FOLDER] [--samples 32 512] [--only WORD]

Two hidden layers of 256 that tell digits apart are trained on the fly; with --cifar (see `trained_resnet.py`)
a ResNet-20 follows. Each line is a pass and how far the outputs are then from the original's on samples that
nothing saw, by the ridge in shares of the mean eigenvalue. "as it is" is what passes do: for codebooks the
ridge with which inputs tell each other best on every fourth sample, for patterns the one whose weight errs
least there, layer by layer; for the metrics of `factorize`, `share` and `prune-nodes` a constant (`RIDGE`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nncompress
from benchmarks.networks.trained_resnet import trained_resnet
from nncompress import pipeline
from nncompress.analysis.distance.drift import Reference, Samples, amount
from nncompress.analysis.observe import moments, seen_inputs
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.recipe import parse_pass

CHOSEN = ("cluster:codebook=4", "prune:pattern=2:4")  # per layer, on samples held out
CONSTANT = ("factorize:macs=0.7", "share:saving=0.3", "prune-nodes:ratio=0.2")
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--only", default="", help="passes that hold this word")
    arguments = parser.parse_args()
    print(f"{'network':9} {'pass':24} samples {'as it is':>9} " + " ".join(f"{r:9g}" for r in RIDGES))
    report("digits", *digits(), CHOSEN, arguments)
    if arguments.cifar:
        report("resnet20", *trained_resnet("resnet20", arguments.cifar), CHOSEN + CONSTANT, arguments)


def report(
    name: str,
    model: Model,
    train: Dataset,
    test: Dataset,
    passes: tuple[str, ...],
    arguments: argparse.Namespace,
) -> None:
    inputs = next(iter(test.batches(256, 256))).inputs
    reference = Reference(model, Samples((inputs,), (len(inputs[0]),), "held-out"), name)
    for text in passes:
        for samples in arguments.samples if arguments.only in text else ():
            print(f"{name:9} {text:24} {samples:7}", end="", flush=True)
            for value in (None, *RIDGES):
                with always(value):
                    result, _ = pipeline.run(model, [parse_pass(text)], Context(data=train, limit=samples))
                print(f" {amount(reference.drift(result, text)):9.3%}", end="", flush=True)
            print()


def digits() -> tuple[Model, Dataset, Dataset]:
    """The model, trained for 30 epochs on digits; digits to compress it with, and to test it on."""
    parts = [
        np.load(Path(__file__).parents[2] / "fixtures" / f"digits_{part}.npz") for part in ("train", "test")
    ]
    x, unseen = (torch.tensor(part["x"]).flatten(1).float() / 100 - 1 for part in parts)
    y = torch.tensor(parts[0]["y"])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(30):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    model = Model.from_module(net.eval(), (x[:2],))
    return model, nncompress.dataset(x.numpy(), model), nncompress.dataset(unseen.numpy(), model)


@contextmanager
def always(value: float | None) -> Iterator[None]:
    """Every ridge is `value`; None leaves them as they are."""
    chosen, usual = (seen_inputs.held_out_ridge, seen_inputs.RIDGES), moments.with_ridge.__defaults__
    if value is not None:
        seen_inputs.held_out_ridge, seen_inputs.RIDGES = (lambda fitted, held: value), (value,)
        moments.with_ridge.__defaults__ = (value,)
    try:
        yield
    finally:
        (seen_inputs.held_out_ridge, seen_inputs.RIDGES), moments.with_ridge.__defaults__ = chosen, usual


if __name__ == "__main__":
    main()
