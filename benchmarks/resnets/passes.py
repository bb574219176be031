"""What each pass costs and gains on a trained ResNet-20 (CIFAR-10, option-A shortcuts), without fine-tuning.

    python -m benchmarks.resnets.passes DIR

DIR holds resnet20.safetensors, lossless_train4660.npz and lossless_test846.npz. Prints, for each pass alone
and for the chain, top-1 on the 846 test images with the paired difference, MACs, file size and speed in ONNX
Runtime.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nncompress
from benchmarks.networks.trained_resnet import trained_resnet
from nncompress.analysis.accuracy import evaluate, evaluate_paired
from nncompress.analysis.cost import cost
from nncompress.benchmarking import Candidate, benchmark
from nncompress.runtimes import open_artifact

CHAINS = {
    "original": [],
    "prune": ["prune:std=0.5"],
    "prune-nodes": ["prune-nodes:macs=0.8,round-to=8"],
    "factorize": ["factorize:macs=0.8,round-to=8"],
    "quantize": ["quantize"],
    "chain": ["prune:std=0.25", "factorize:macs=0.7,round-to=8", "quantize"],
}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    original, train, test = trained_resnet("resnet20", Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as work:
        candidates = []
        for name, passes in CHAINS.items():
            model = nncompress.compress(original, passes, data=train) if passes else original
            path = Path(work) / f"{name}.onnx"
            nncompress.export(model, path)
            candidates.append(Candidate(name, path, macs=cost(model).macs))
            print(f"made {name}", file=sys.stderr)
        result = benchmark(candidates, batch=1, time_budget=30)
        first = open_artifact(candidates[0].artifact).run
        print("| pass | top-1 % | difference [95 %] | MACs | ONNX file | speed-up [95 %] |")
        print("|---|---|---|---|---|---|")
        for candidate in result.candidates:
            run = open_artifact(Path(work) / f"{candidate.name}.onnx").run
            top1 = 100 * (evaluate(run, test).top1 or 0)
            d = evaluate_paired(first, run, test).difference
            difference = f"{100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
            s = candidate.speedup
            speed = f"{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" if s else "1"
            megabytes = (candidate.file_size or 0) / 1e6
            texts = "; ".join(CHAINS[candidate.name]) or "original"
            print(
                f"| `{texts}` | {top1:.1f} | {difference if s else ''} | {(candidate.macs or 0) / 1e6:.1f} M "
                f"| {megabytes:.2f} MB | {speed} |"
            )
        for warning in result.warnings:
            print("warning:", warning)


if __name__ == "__main__":
    main()
