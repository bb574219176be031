"""What the tool itself costs: from a saved ResNet-50 at 224² and 64 images to a compressed, verified ONNX.

    python -m benchmarks.cost.chain

prints wall time, CPU time and peak memory of the whole command. The aim: at most 3 minutes and 3 GB on two
cores. On a machine that is busy with other things, the CPU time is the fairer figure.

The kernel counts the memory of a parent at the fork into its child's peak (`ru_maxrss` outlives exec), and
this one holds torch and a ResNet-50. So a small process in between starts the command and tells its cost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.networks import imagenet_resnet

PASSES = ("prune:std=0.5", "factorize:err=1e-5", "quantize")
IN_BETWEEN = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}, file)
"""


def settled_resnet50() -> torch.nn.Module:
    """Random weights whose batch norms have seen noise, so that activations neither vanish nor explode."""
    torch.manual_seed(0)
    model = imagenet_resnet.resnet50().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 224, 224))
    return model.eval()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        save_file(settled_resnet50().state_dict(), work / "resnet50.safetensors")
        images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), dtype=np.uint8)
        np.savez(work / "calibration.npz", x=images)
        command = [sys.executable, "-m", "nncompress", "compress", str(work / "resnet50.safetensors")]
        command += ["--arch", f"{imagenet_resnet.__file__}:resnet50", "--normalize", "imagenet"]
        command += ["--data", str(work / "calibration.npz"), "-o", str(work / "small.onnx")]
        for each in PASSES:
            command += ["--pass", each]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", IN_BETWEEN, "cost.json", *command], cwd=work, check=True)
        seconds = time.perf_counter() - started
        cost = json.loads((work / "cost.json").read_text())
        if cost["code"]:
            sys.exit(cost["code"])
        peak, cpu = cost["peak"], cost["cpu"]
        print(f"\n{' -> '.join(PASSES)} -> verified ONNX:")
        print(f"{seconds:.0f} s ({cpu:.0f} s of CPU), peak memory {peak / 1e9:.2f} GB")
        print("within the aim" if seconds <= 180 and peak <= 3e9 else "OVER the aim of 180 s and 3 GB")


if __name__ == "__main__":
    main()
