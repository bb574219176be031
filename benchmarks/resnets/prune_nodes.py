"""One-shot node pruning of CIFAR ResNets without fine-tuning: measured MAC cut against top-1.

    python -m benchmarks.resnets.prune_nodes DIR [--depth 20] [--cut 0.5] [--limit 512] [--seeds 1]

DIR holds resnet20.safetensors, resnet56.safetensors, lossless_train4660.npz (the only data that criteria and
repair see) and lossless_test846.npz. Every row is `nncompress prune-nodes --macs SHARE --blocks …`. `random`
beside it cuts as many MACs with `--criterion random`, otherwise the same, repair included (on at most
RANDOM_LIMIT images): mean and range over seeds. `bare` is random without any repair.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import nncompress
from benchmarks.networks import cifar_resnet
from nncompress import pipeline
from nncompress.analysis.accuracy import evaluate, evaluate_paired
from nncompress.analysis.cost import cost
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.prune_nodes.options import PruneNodes

CUTS = {20: (0.3, 0.5), 56: (0.2, 0.3, 0.5)}
BLOCKS = {20: ("separate", "grouped"), 56: ("separate",)}
LIMIT = {20: 512, 56: 2048}
RANDOM_LIMIT = 256
COLUMNS = "model | MACs cut | `--blocks` | images | top-1 % | difference [95 %] | random | bare | s"


def pruned(model: Model, data: Dataset, limit: int, seed: int = 0, **options: object) -> Model:
    context = Context(data=data, limit=limit, seed=seed)
    return pipeline.run(model, [PruneNodes(**options)], context)[0]  # type: ignore[arg-type]


def top1(model: Model, test: Dataset) -> float:
    return 100 * (evaluate(model, test).top1 or 0)


def at_random(model: Model, data: Dataset, test: Dataset, limit: int, seeds: int, **options: object) -> str:
    """Mean and range of top-1 with random nodes."""
    if not seeds:
        return ""
    options |= {"criterion": "random", "verify": False}
    found = [top1(pruned(model, data, limit, seed, **options), test) for seed in range(seeds)]
    return f"{np.mean(found):.1f} [{min(found):.1f}, {max(found):.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depth", type=int, action="append", choices=sorted(CUTS))
    parser.add_argument("--limit", type=int, help="training images for criterion and repair")
    parser.add_argument("--seeds", type=int, default=5, help="of the random criterion")
    parser.add_argument("--cut", type=float, action="append", help="instead of the standard ones")
    parser.add_argument("--blocks", action="append", choices=["grouped", "separate"])
    arguments = parser.parse_args()
    print(f"| {COLUMNS} |\n" + "|---" * (COLUMNS.count("|") + 1) + "|")
    for depth in arguments.depth or sorted(CUTS):
        original = nncompress.load(
            arguments.folder / f"resnet{depth}.safetensors",
            arch=f"{cifar_resnet.__file__}:resnet{depth}",
            input="1x3x32x32",
            normalize="imagenet",
        )
        train = nncompress.dataset(str(arguments.folder / "lossless_train4660.npz"), original)
        test = nncompress.dataset(str(arguments.folder / "lossless_test846.npz"), original)
        before = cost(original).macs
        limit = arguments.limit or LIMIT[depth]
        few = min(limit, RANDOM_LIMIT)
        print(f"| ResNet-{depth} | 0 | | | {top1(original, test):.1f} | | | | |", flush=True)
        for cut in arguments.cut or CUTS[depth]:
            for blocks in arguments.blocks or BLOCKS[depth]:
                options = {"macs": round(1 - cut, 6), "blocks": blocks}
                started = time.perf_counter()
                small = pruned(original, train, limit, **options)
                seconds = time.perf_counter() - started
                measured = 1 - cost(small).macs / before
                d = evaluate_paired(original, small, test).difference
                repaired = at_random(original, train, test, few, arguments.seeds, **options)
                options |= {"compensate": False, "renormalize": False}
                bare = at_random(original, train, test, few, arguments.seeds, **options)
                print(
                    f"| ResNet-{depth} | {measured:.1%} | {blocks} | {limit} "
                    f"| {top1(small, test):.1f} "
                    f"| {100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}] | {repaired} | {bare} "
                    f"| {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
