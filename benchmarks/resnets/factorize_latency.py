"""What `factorize` gains in milliseconds on CIFAR ResNets, without fine-tuning, at what loss of accuracy.

    python -m benchmarks.resnets.factorize_latency DIR [--models resnet20,resnet56] [--settings latency=0.7 …]

DIR holds resnet20.safetensors, resnet56.safetensors, lossless_train4660.npz (the only data that is used to
compress) and lossless_test846.npz (the only data that is used to measure). All versions of a model are timed
in ONNX Runtime in one interleaved run, one thread, by CPU time. With 846 images the standard error of a top-1
near 92 % is 0.9 points; the difference is paired.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import nncompress
from benchmarks.networks.trained_resnet import trained_resnet
from nncompress.analysis.accuracy import evaluate, evaluate_paired
from nncompress.analysis.cost import cost
from nncompress.benchmarking import Candidate, benchmark
from nncompress.errors import UsageError
from nncompress.runtimes import open_artifact

SETTINGS = ["latency=0.8", "latency=0.7", "macs=0.5,round-to=8", "macs=0.5"]
MOST_LOST = 0.5  # points of top-1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="resnet20,resnet56")
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--limit", type=int, default=512, help="calibration images")
    parser.add_argument(
        "--keep", type=Path, help="folder of compressed models: those in it are not made anew"
    )
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(","):
        made = {each: [f"factorize:{each}"] for each in options.settings}
        compare(name, {"original": []} | made, options.folder, options.limit, options.keep)


def compare(name: str, made: dict[str, list[str]], folder: Path, limit: int, keep: Path | None) -> None:
    original, train, test = trained_resnet(name, folder)
    with tempfile.TemporaryDirectory() as work:
        candidates = []
        for text, passes in made.items():
            kept = keep and keep / f"{name}-{text}.pt2"
            try:
                if kept and kept.is_file():
                    model = nncompress.load(kept)
                else:
                    model = (
                        nncompress.compress(original, passes, data=train, limit=limit) if passes else original
                    )
            except UsageError as error:  # a latency out of reach on this machine
                print(f"{name} {text}: {error}", file=sys.stderr, flush=True)
                continue
            if kept and not kept.is_file():
                nncompress.export(model, kept)
            path = Path(work) / f"{text}.onnx"
            nncompress.export(model, path)
            candidates.append(Candidate(text, path, macs=cost(model).macs))
            print(f"made {name} {text}", file=sys.stderr, flush=True)
        results = [benchmark(candidates, batch=batch, time_budget=15, memory=False) for batch in (1, 16)]
        first = open_artifact(candidates[0].artifact).run
        print(f"| {name} | top-1 % | difference [95 %] | MACs | time at batch 1 [95 %] | at batch 16 |")
        print("|---|---|---|---|---|---|")
        best: tuple[float, str] | None = None
        for candidate, again in zip(*(result.candidates for result in results)):
            run = open_artifact(Path(work) / f"{candidate.name}.onnx").run
            top1 = 100 * (evaluate(run, test).top1 or 0)
            share = f"{(candidate.macs or 0) / (candidates[0].macs or 1):.2f}"
            if candidate.speedup is None or again.speedup is None:
                median = (candidate.cpu or candidate.wall).median
                print(f"| {candidate.name} | {top1:.2f} | | {share} | {median * 1e3:.3f} ms | |")
                continue
            d, s = evaluate_paired(first, run, test).difference, candidate.speedup
            lost = f"{100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
            took = f"{1 / s.value:.2f} [{1 / s.high:.2f}, {1 / s.low:.2f}]"
            repeated = 1 / again.speedup.value
            print(f"| `{candidate.name}` | {top1:.2f} | {lost} | {share} | {took} | {repeated:.2f} |")
            if 100 * d.value >= -MOST_LOST and s.low > 1 and (best is None or s.value > best[0]):
                best = (s.value, candidate.name)
        said = f"{best[1]} is {best[0]:.2f} times as fast" if best else "nothing pays"
        print(f"\nAt no more than {MOST_LOST} points lost: {said}.\n", flush=True)
        for warning in (w for result in results for w in result.warnings):
            print("warning:", warning)


if __name__ == "__main__":
    main()
