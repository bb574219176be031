"""Does it matter by how much a second moment is lifted before it is inverted? A trained ResNet-20.

    python benchmarks/ridges.py --cifar FOLDER [--images 32 512] [--only WORD]

FOLDER: see `trained_resnet.py`. Each line is a pass and how far the outputs are then from the original's on
256 test images, by its ridge in shares of the mean eigenvalue. "as it is" is what passes do: for codebooks
and patterns the ridge of each layer that is best on every fourth image; for the metrics of `factorize`,
`share` and `prune-nodes` a constant (`RIDGE`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trained_resnet import trained_resnet

from nncompress import pipeline
from nncompress.analysis.curvature import ridge
from nncompress.analysis.distance.drift import Reference, Samples, amount
from nncompress.analysis.observe import seen_inputs
from nncompress.passes import Context
from nncompress.recipe import parse_pass

CHOSEN = ("cluster:codebook=4", "prune:pattern=2:4")  # per layer, on samples held out
CONSTANT = ("factorize:macs=0.7", "share:saving=0.3", "prune-nodes:ratio=0.2")
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--only", default="", help="passes that hold this word")
    arguments = parser.parse_args()
    model, train, test = trained_resnet("resnet20", arguments.cifar)
    inputs = next(iter(test.batches(256, 256))).inputs
    reference = Reference(model, Samples((inputs,), (256,), "held-out"), "resnet20")
    print(f"{'pass':24} images {'as it is':>9} " + " ".join(f"{r:9g}" for r in RIDGES))
    for text in CHOSEN + CONSTANT:
        for images in arguments.images if arguments.only in text else ():
            print(f"{text:24} {images:6}", end="", flush=True)
            for value in (None, *RIDGES):
                with always(value):
                    result, _ = pipeline.run(model, [parse_pass(text)], Context(data=train, limit=images))
                print(f" {amount(reference.drift(result, text)):9.3%}", end="", flush=True)
            print()


@contextmanager
def always(value: float | None) -> Iterator[None]:
    """Every ridge is `value`; None leaves them as they are."""
    chosen, usual = seen_inputs.held_out_ridge, ridge.with_ridge.__defaults__
    if value is not None:
        seen_inputs.held_out_ridge = lambda fitted, held: value
        ridge.with_ridge.__defaults__ = (value,)
    try:
        yield
    finally:
        seen_inputs.held_out_ridge, ridge.with_ridge.__defaults__ = chosen, usual


if __name__ == "__main__":
    main()
