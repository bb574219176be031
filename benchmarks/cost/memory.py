"""Memory that each command with data takes, of two networks of wide activations, at few and many samples.

    python -m benchmarks.cost.memory [--out FILE.md] [--only WORD]

Every cell is a process of its own, with the network and the data in files, and with a budget
(`nncompress.analysis.observe.budget`) of an eighth, so that networks and data that are eight times smaller
show as much. Reported are the MiB that the process had in memory at most (VmHWM) beyond those before the
work: the imports, which take 400 to 600, are not the command's. What should hold: at most three budgets more
with the many samples than with the few (the values of a batch, the checkpoints of a layer-wise run, outputs
that are compared), else the row says so. A run that kept the activations of all samples would take 300 and
more. What is freed goes back to the system at once (`MALLOC_MMAP_THRESHOLD_`), so that holes in the heap,
which take up to 30 here, are not taken for what is kept.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import nn

BUDGET = 32  # MiB
PROBES = 7  # of so many `sensitivity` measures one
HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
SIZES = {"wide": (64, (64, 256)), "unet": (192, (8, 48))}  # pixels; samples
PASSES = (
    *("prune:sparsity=0.5", "prune:pattern=2:4", "cluster:codebook=16", "factorize:macs=0.7"),
    *(
        "prune-nodes:ratio=0.3",
        "reduce:macs=0.7",
        "grow:by=4",
        "share",
        "substitute:relative=0.5",
        "quantize",
        "quantize:rounding=adaptive",
    ),
)
COMMANDS = (*PASSES, "prune-nodes:ratio=0.3,rotate=true", "sensitivity", "eval", "train", "bench")


class UNet(nn.Module):
    """Three levels, as they segment images: 4, 8 and 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = _block(3, 4), _block(4, 8), _block(8, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)
        self.back2, self.back1 = _block(16, 8), _block(8, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        b = self.second(nn.functional.max_pool2d(a, 2))
        c = self.third(nn.functional.max_pool2d(b, 2))
        b = self.back2(torch.cat([self.up2(c), b], 1))
        return self.head(self.back1(torch.cat([self.up1(b), a], 1)))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(
        first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs), nn.ReLU()
    )


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "unet":
        return UNet().eval()
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))]
    layers = [each for convolution in convolutions for each in (convolution, nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="commands that hold this word")
    parser.add_argument("--cell", nargs=4, metavar=("NETWORK", "DATA", "SIZE", "COMMAND"))
    arguments = parser.parse_args()
    if arguments.cell:
        cell(*arguments.cell)
        return
    columns = [(name, count) for name, (_, counts) in SIZES.items() for count in counts]
    rows = [
        "| command | " + " | ".join(f"{name}, {count}" for name, count in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    print(*rows, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (pixels, counts) in SIZES.items():
            for count in counts:
                x = np.random.default_rng(count).integers(0, 255, (count, pixels, pixels, 3), np.uint8)
                y = (
                    x[..., :2].transpose(0, 3, 1, 2).astype(np.float32)
                    if name == "unet"
                    else x[:, 0, 0, 0] % 4
                )
                np.savez(Path(folder, f"{name}{count}.npz"), x=x, y=y)
        for command in COMMANDS:
            if arguments.only in command:
                cells = [
                    measured(name, Path(folder, f"{name}{count}.npz"), command) for name, count in columns
                ]
                over = any(many - few > 3 * BUDGET for few, many in zip(cells[::2], cells[1::2]))
                rows.append(f"| `{command}` | " + " | ".join(map(str, cells)) + (" over |" if over else " |"))
                print(rows[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(rows) + "\n")


def measured(name: str, data: Path, command: str) -> int:
    own = [sys.executable, __file__, "--cell", name, str(data), str(SIZES[name][0]), command]
    done = subprocess.run(own, capture_output=True, text=True, check=False, env=os.environ | HEAP)
    if done.returncode:
        raise SystemExit(f"{command} on {data.name}: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def cell(name: str, data: str, pixels: str, command: str) -> None:
    from nncompress.analysis.observe import budget

    budget.BUDGET = BUDGET << 20  # before others read it
    import nncompress
    from nncompress import pipeline
    from nncompress.analysis.observe import batch_size
    from nncompress.cli.app import run
    from nncompress.data import open_data
    from nncompress.ir import Model
    from nncompress.passes import Context
    from nncompress.recipe import parse_pass
    from nncompress.search.layers.sensitivity import probes, sensitivity
    from nncompress.search.records import Records
    from nncompress.train import TrainSettings, train

    assert batch_size.BUDGET == budget.BUDGET
    size = int(pixels)
    model = Model.from_module(network(name), (torch.randn(2, 3, size, size),))
    dataset = open_data(data, model.inputs)
    warm_up(model)
    before = in_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    if command == "eval":
        nncompress.evaluate(model, data)
    elif command == "sensitivity":
        context = Context(data=dataset, limit=None)
        probed = probes(model, context=context)[::PROBES]
        sensitivity(model, probed, context, Records(None), math.inf, "error")
    elif command == "train":
        train(model, dataset, TrainSettings(epochs=1, batch=8))
    elif command == "bench":
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            nncompress.export(model, Path(folder, "m.pt2"))
            run(["bench", f"{folder}/m.pt2", "--data", data, "--time", "1"])
    else:
        pipeline.run(model, [parse_pass(command)], Context(data=dataset, limit=None))
    most = in_memory("VmHWM")
    print(most - before)


def warm_up(model: object) -> None:
    """Import what a run imports."""
    from nncompress.ir import Model

    assert isinstance(model, Model)
    model.copy().refresh()


def in_memory(field: str) -> int:
    """MiB of this process, by a field of its status."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith(field))


if __name__ == "__main__":
    main()
