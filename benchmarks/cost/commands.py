"""What `prune-nodes` and `factorize` cost: CPU time and peak memory, each figure from a process of its own.

    python -m benchmarks.cost.commands [--images 64] [--only analysis|command]

1. The analysis that finds what is tied together. The aim: at most 2 s for ResNet-50 at 224², at most 5 s for
   any model, in proportion to the graph; peak memory below twice the model plus 1 GB.
2. Whole commands on ResNet-50 at 224² (load, choose, repair, prove, save), with and without data.

On a machine that is busy with other things, CPU time is the fairer figure. Memory is the most that the
process ever held, Python and torch included; the first row of the second table shows how much those are.
(This script itself stays small: the kernel counts a parent's memory at the fork as its child's.)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

DEPTHS = (20, 56, 110, 218)
COMMANDS = {
    "`inspect`, for comparison": ["inspect"],
    "`prune-nodes --macs 0.5`, no data": ["prune-nodes", "--macs", "0.5"],
    "`--criterion l2`, repair on data": ["prune-nodes", "--macs", "0.5", "--criterion", "l2", "--data"],
    "`reconstruction`, repair on data": ["prune-nodes", "--macs", "0.5", "--data"],
    "`factorize --macs 0.6`, no data": ["factorize", "--macs", "0.6"],
    "`factorize --macs 0.6`, on data": ["factorize", "--macs", "0.6", "--data"],
}
ANALYSIS = """
import sys, time, nncompress
from nncompress.analysis.couplings import find_couplings
model = nncompress.load(sys.argv[1])
started = time.process_time()
couplings = find_couplings(model)
print(len(model.graph.nodes), len(couplings.groups), time.process_time() - started)
"""


def prepare(folder: Path, images: int) -> None:
    """The models, as 0.pt2, 1.pt2, …, and the images."""
    import numpy as np
    import torch

    import nncompress
    from benchmarks.cost.chain import settled_resnet50
    from nncompress.ir import Model
    from nncompress.zoo.cifar_resnet import CifarResNet

    torch.manual_seed(0)
    modules = [(settled_resnet50(), 224)] + [(CifarResNet((d - 2) // 6).eval(), 32) for d in DEPTHS]
    for number, (module, size) in enumerate(modules):
        example = (torch.randn(2, 3, size, size),)
        nncompress.export(
            Model.from_module(module, example, metadata={"normalize": "imagenet"}), folder / f"{number}.pt2"
        )
    pixels = np.random.default_rng(0).integers(0, 256, (images, 224, 224, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", x=pixels)


def measured(command: list[str]) -> tuple[str, float, float]:
    """What it printed, its CPU seconds and its peak memory in GB.

    Raises:
        SystemExit: it failed.
    """
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            sys.exit(f"failed: {' '.join(command)}")
        output.seek(0)
        return output.read(), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def analysis(folder: Path) -> None:
    print("| model | weights, GB | graph nodes | groups | seconds | ms per node | peak, GB | limit, GB |")
    print("|---" * 8 + "|")
    for number, name in enumerate(("ResNet-50, 224²", *(f"CIFAR ResNet-{d}" for d in DEPTHS))):
        path = folder / f"{number}.pt2"
        size = path.stat().st_size / 1e9
        printed, _, peak = measured([sys.executable, "-c", ANALYSIS, str(path)])
        nodes, groups, seconds = (float(v) for v in printed.split())
        cells = [name, f"{size:.2f}", f"{nodes:.0f}", f"{groups:.0f}", f"{seconds:.2f}"]
        cells += [f"{1e3 * seconds / nodes:.2f}", f"{peak:.2f}", f"{2 * size + 1:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def commands(folder: Path, images: int) -> None:
    print(f"\n| ResNet-50 at 224², {images} images | CPU seconds | peak, GB |\n|---|---|---|")
    for name, (command, *options) in COMMANDS.items():
        options += [str(folder / "images.npz"), "--limit", str(images)] if "--data" in options else []
        options += [] if command == "inspect" else ["-o", str(folder / "pruned.pt2")]
        line = [sys.executable, "-m", "nncompress", command, str(folder / "0.pt2"), *options]
        _, seconds, peak = measured(line)
        print(f"| {name} | {seconds:.0f} | {peak:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--only", choices=["analysis", "command"])
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare, arguments.images)
        return
    with tempfile.TemporaryDirectory() as name:
        own = [sys.executable, "-m", "benchmarks.cost.commands"]
        subprocess.run([*own, "--images", str(arguments.images), "--prepare", name], check=True)
        if arguments.only != "command":
            analysis(Path(name))
        if arguments.only != "analysis":
            commands(Path(name), arguments.images)


if __name__ == "__main__":
    main()
