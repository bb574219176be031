"""What codebooks cost a trained ResNet-20 (CIFAR-10) in accuracy, and what data saves of that. No training.

    python -m benchmarks.resnets.cluster DIR

DIR holds resnet20.safetensors, lossless_train4660.npz and lossless_test846.npz. Prints top-1 on the 846 test
images and the relative error of the network's outputs, for every size of codebook and way to find it;
statistics from 256 training images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import nncompress
from benchmarks.networks.trained_resnet import trained_resnet
from nncompress.analysis.accuracy import evaluate
from nncompress.runtimes import open_artifact

WAYS = {
    "weights alone": "weighting=none,compensate=false",
    "`--weighting inputs`": "weighting=inputs,compensate=false",
    "`--weighting fisher`": "weighting=fisher,compensate=false",
    "compensated (the default with data)": "weighting=inputs,compensate=true",
}
CODEBOOKS = ["codebook=16", "codebook=4", "codebook=4,per=channel"]
RECORDS = 256


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    original, train, test = trained_resnet("resnet20", Path(sys.argv[1]))
    images = torch.cat([batch.inputs[0] for batch in test.batches(256)])
    with torch.no_grad():
        expected = original(images)
    print(f"original: {100 * (evaluate(open_artifact(original).run, test).top1 or 0):.2f}")
    print("| codebook | " + " | ".join(WAYS) + " |")
    print("|---|" + "---|" * len(WAYS))
    for codebook in CODEBOOKS:
        cells = []
        for way in WAYS.values():
            model = nncompress.compress(original, f"cluster:{codebook},{way}", data=train, limit=RECORDS)
            top1 = 100 * (evaluate(open_artifact(model).run, test).top1 or 0)
            with torch.no_grad():
                error = float((model(images) - expected).norm() / expected.norm())
            cells.append(f"{top1:.1f} ({error:.2f})")
        print(f"| `{codebook}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
