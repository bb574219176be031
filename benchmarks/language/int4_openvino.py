"""Weights of 4 bits in OpenVINO: our .xml beside float32 and beside what NNCF makes of the float32 file.

    python -m benchmarks.language.int4_openvino FOLDER [--width 1024] [--layers 4] [--group-size 128]

Products with random weights, one vector a call, as in decoding. Of each file, in a process of its own: bytes
of the weights, what the process takes more once it is compiled and has run, and the median CPU time of a call
on one thread. Needs nncf, which nncompress does not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nncompress import pipeline
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.passes import Context, Quantize

CALLS = 60


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        _run(given.folder / given.run, given.width)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    _write(given)
    print("| weights | bytes | memory | ms |")
    for name in ("float32", "ours", "nncf"):
        same = [f"--width={given.width}", f"--run={name}.xml"]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.language.int4_openvino", given.folder, *same], check=True
        )


def _write(given: argparse.Namespace) -> None:
    import nncf
    import openvino

    torch.manual_seed(0)
    width = given.width
    blocks = (
        (nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(given.layers)
    )
    net = nn.Sequential(*(layer for block in blocks for layer in block)).eval()
    model = Model.from_module(net, (torch.randn(2, width),))
    rounding = Quantize(weight_bits=4, group_size=given.group_size, rounding="nearest")
    write(model, given.folder / "float32.xml")
    write(pipeline.run(model, [rounding], Context())[0], given.folder / "ours.xml")
    theirs = nncf.compress_weights(
        openvino.Core().read_model(given.folder / "float32.xml"),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=given.group_size,
        ratio=1.0,
        all_layers=True,
    )
    openvino.save_model(theirs, given.folder / "nncf.xml")


def _run(file: Path, width: int) -> None:
    import openvino

    core = openvino.Core()
    before = _resident()
    compiled = core.compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": 1})
    x = np.random.default_rng(0).standard_normal((1, width)).astype(np.float32)
    compiled(x)
    held = _resident() - before
    times = []
    for _ in range(CALLS):
        started = time.process_time()
        compiled(x)
        times.append(time.process_time() - started)
    size = file.with_suffix(".bin").stat().st_size
    print(
        f"| {file.stem} | {size / 1e6:.1f} MB | {held / 1e6:.0f} MB | {1e3 * float(np.median(times)):.2f} |"
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
