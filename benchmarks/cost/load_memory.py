"""How many times its own bytes a model file takes of memory while it is read, or opened and run.

    python -m benchmarks.cost.load_memory [--only WORD]

A plain network of linear layers is written in every format, and compressed in those that hold packed weights,
at two sizes; each file is read in a process of
its own, whose private memory (`VmData`, what `RLIMIT_DATA` bounds) is looked at every few milliseconds from
outside. Printed is the most that was there beyond what the imports had taken, as a multiple of the file's
bytes, at both sizes, and what a further byte of a file takes: the difference of the two, without what every
file costs. `nncompress.memory.COPIES` is the multiple that a file may take, beside a quarter of the memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

WIDTH = 512  # of a layer, 1 MiB
SMALLEST, *LAYERS = 1, 16, 64  # of what is read beforehand, of the two that are measured
INTERVAL = 0.003  # s
FORMATS = (
    *("pickled.pt", "state.pt", "state.safetensors", "plain.pt2", "exported.pt2", "traced.pt", "plain.onnx"),
    *("clustered.pt2", "sparse.pt2", "int8.pt2", "int4.pt2", "lowrank.pt2", "entropy.pt2"),
    *("state-clustered.safetensors", "int8.onnx", "int4.onnx"),
    *("run plain.onnx", "run int8.onnx", "run plain.xml", "data plain.npz", "data deflated.npz"),
)
PASSES = {  # whose files hold packed weights, or factors
    "clustered": "cluster:codebook=16",
    "sparse": "prune:sparsity=0.9",
    "int8": "quantize:mode=weights",
    "int4": "quantize:mode=weights,weight-bits=4,group-size=64",
    "lowrank": "factorize:params=0.5",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows that hold this word")
    parser.add_argument("--read", nargs=2, metavar=("ROW", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.read[0], Path(arguments.read[1]))
        return
    print(f"{'read':20} {'MiB':>11} {'times its bytes':>16} {'a further byte':>15}")
    with tempfile.TemporaryDirectory() as folder:
        for layers in (SMALLEST, *LAYERS):
            write(Path(folder, str(layers)), layers)
        for row in FORMATS:
            if arguments.only in row:
                report(row, [Path(folder, str(layers)) for layers in LAYERS])


def report(row: str, folders: list[Path]) -> None:
    sizes = [sum(file.stat().st_size for file in files_of(folder / row.split()[-1])) for folder in folders]
    takes = [most_taken(row, folder) for folder in folders]
    small, large = (take / size for take, size in zip(takes, sizes))
    further = (takes[1] - takes[0]) / (sizes[1] - sizes[0])
    mebibytes = "/".join(f"{size >> 20}" for size in sizes)
    print(f"{row:20} {mebibytes:>11} {small:10.1f} {large:5.1f} {further:15.1f}", flush=True)


def files_of(path: Path) -> list[Path]:
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def network(layers: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers))).eval()


def write(folder: Path, layers: int) -> None:
    import nncompress
    from nncompress import exporting

    folder.mkdir()
    net, x = network(layers), torch.randn(2, WIDTH)
    torch.save(net, folder / "pickled.pt")
    torch.save(net.state_dict(), folder / "state.pt")
    torch.jit.trace(net, x).save(folder / "traced.pt")
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: batch},)), folder / "exported.pt2")
    model = nncompress.load(net, input=x)
    for name in ("plain.pt2", "plain.onnx", "state.safetensors", "plain.xml"):
        nncompress.export(model, folder / name)
    exporting.write(model, folder / "entropy.pt2", storage="entropy")
    for name, each in PASSES.items():
        made = nncompress.compress(model, [each])
        for file in (f"{name}.pt2", f"state-{name}.safetensors", f"{name}.onnx"):
            if any(row.endswith(file) for row in FORMATS):
                nncompress.export(made, folder / file)
    values = np.random.default_rng(0).integers(0, 4, (layers * WIDTH, WIDTH)).astype(np.float32)
    np.savez(folder / "plain.npz", x=values)
    np.savez_compressed(folder / "deflated.npz", x=values)


def most_taken(row: str, folder: Path) -> int:
    """Bytes of private memory that reading the file of a row took at most."""
    own = [sys.executable, __file__, "--read", row, str(folder)]
    with subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has imported what it needs
        before = most = private(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None:
            most = max(most, private(process.pid))
            time.sleep(INTERVAL)
    if process.returncode:
        raise SystemExit(f"{row} in {folder} could not be read")
    return most - before


def private(process: int) -> int:
    """Its `VmData`; 0 where it has ended."""
    with suppress(OSError), Path(f"/proc/{process}/status").open() as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmData")), 0)
    return 0


def read(row: str, folder: Path) -> None:
    """Read a small file of the kind, so that all is imported; say so; when told, read the file."""
    opened(row, folder.parent / str(SMALLEST))
    print("ready", flush=True)
    sys.stdin.readline()
    opened(row, folder)


def opened(row: str, folder: Path) -> None:
    import nncompress
    from nncompress.loading import load_model
    from nncompress.runtimes import open_artifact

    what, _, name = row.rpartition(" ")
    path = folder / name
    if what == "run":
        open_artifact(path).run(np.zeros((1, WIDTH), np.float32))
    elif what == "data":
        next(iter(nncompress.dataset(str(path), load_model(folder / "plain.pt2")).batches(16)))
    elif name.startswith("state"):
        nncompress.load(path, arch=f"{__file__}:layers_{folder.name}", input=f"1x{WIDTH}")
    else:
        nncompress.load(path, **({"input": f"1x{WIDTH}"} if name in ("pickled.pt", "traced.pt") else {}))


def layers_1() -> nn.Module:
    return network(1)


def layers_16() -> nn.Module:
    return network(16)


def layers_64() -> nn.Module:
    return network(64)


if __name__ == "__main__":
    main()
