"""What clustered and pruned weights take on disk, against their entropy, and what that costs at run time.

    python -m benchmarks.cost.cluster_storage DIR

DIR holds resnet20.safetensors. First table: a ResNet-20 (CIFAR-10); bytes of its weights as stored (indices,
codebooks, bitmaps), packed and entropy-coded, beside the entropy of the indices (of a sparse float weight:
the bitmap's entropy and its nonzero floats), and whole files. Second: the time of a call in ONNX Runtime
beside the original's, interleaved. Third: how long ONNX Runtime takes to open a file of one large layer,
because it computes the lookups then, and how long its calls then take; files in turns, CPU time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import onnxruntime
import torch
from torch import Tensor, nn

import nncompress
from benchmarks.networks import cifar_resnet
from nncompress.benchmarking import Candidate, benchmark
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.ir.formats.deflate import encode
from nncompress.ir.formats.packed import smallest
from nncompress.ir.layers.weights import layers

PASSES = {
    "–": [],
    "`cluster:codebook=16`": ["cluster:codebook=16"],
    "`cluster:codebook=4`": ["cluster:codebook=4"],
    "`cluster:codebook=2`": ["cluster:codebook=2"],
    "`cluster:codebook=4,per=channel`": ["cluster:codebook=4,per=channel"],
    "`cluster:codebook=16,per=channel`": ["cluster:codebook=16,per=channel"],
    "`prune:sparsity=0.5`": ["prune:sparsity=0.5"],
    "`prune:sparsity=0.8`": ["prune:sparsity=0.8"],
    "`prune:sparsity=0.5`, `cluster:codebook=16`": ["prune:sparsity=0.5", "cluster:codebook=16"],
    "`prune:sparsity=0.8`, `cluster:codebook=16`": ["prune:sparsity=0.8", "cluster:codebook=16"],
}
LARGE = 4096
OPENINGS, CALLS = 3, 200


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    original = nncompress.load(
        Path(sys.argv[1]) / "resnet20.safetensors",
        arch=f"{cifar_resnet.__file__}:resnet20",
        input="1x3x32x32",
    )
    with tempfile.TemporaryDirectory() as work:
        candidates = storage(original, Path(work))
        print()
        latency(candidates)
        print()
        loading(Path(work))


def storage(original: Model, folder: Path) -> list[Candidate]:
    print(
        "| passes | weights | entropy | packed | entropy-coded | .onnx | .pt2, coded | .safetensors, coded |"
    )
    print("|---|---|---|---|---|---|---|---|")
    candidates = []
    for number, (name, passes) in enumerate(PASSES.items()):
        model = nncompress.compress(original, passes) if passes else original
        dense = packed = coded = entropy = 0.0
        for layer in layers(model):
            weight = layer.weight.value()
            parts = smallest(weight) or {"dense": weight}
            stored = [
                part.contiguous().flatten().view(torch.uint8).numpy().tobytes() for part in parts.values()
            ]
            dense += weight.numel() * weight.element_size()
            packed += sum(map(len, stored))
            coded += sum(min(len(data), len(encode(data))) for data in stored)
            entropy += sum(map(entropy_bytes, weight.flatten(1) if "per=channel" in name else [weight]))
        onnx = folder / f"{number}.onnx"
        files = [
            write(model, onnx).bytes,
            write(model, folder / "m.pt2", storage="entropy").bytes,
            write(model, folder / "m.safetensors", storage="entropy").bytes,
        ]
        candidates.append(Candidate(name, onnx))
        print(
            f"| {name} | {dense:,.0f} | {entropy:,.0f} | {packed:,.0f} ({packed / entropy:.2f}) "
            f"| {coded:,.0f} ({coded / entropy:.2f}) | " + " | ".join(f"{f:,}" for f in files) + " |",
            flush=True,
        )
    return candidates


def latency(candidates: list[Candidate]) -> None:
    result = benchmark(candidates, batch=1, time_budget=20, memory=False)
    print("| passes | time of the original [95 %] |")
    print("|---|---|")
    for candidate in result.candidates[1:]:
        assert candidate.speedup is not None
        low, value, high = 1 / candidate.speedup.high, 1 / candidate.speedup.value, 1 / candidate.speedup.low
        print(f"| {candidate.name} | {value:.2f} [{low:.2f}, {high:.2f}] |")
    for warning in result.warnings:
        print("warning:", warning)


def entropy_bytes(weight: Tensor) -> float:
    """Of the indices, one by one; of more than 256 values, of the bitmap alone, and the floats in full."""
    values, counts = torch.unique(weight, return_counts=True)
    floats = 0
    if len(values) > 256:
        zeros = int(counts[values == 0].sum())
        if not zeros:
            return weight.numel() * weight.element_size()
        counts = torch.tensor([zeros, weight.numel() - zeros])
        floats = (weight.numel() - zeros) * weight.element_size()
    shares = counts.double() / counts.sum()
    return floats + float(-(counts * shares.log2()).sum() / 8)


def loading(folder: Path) -> None:
    torch.manual_seed(0)
    dense = torch.randn(LARGE, LARGE)
    book = torch.randn(LARGE, 4)
    index = torch.randint(0, 4, (LARGE, LARGE))
    forms = {
        "dense": dense,
        "16 values": torch.randn(16)[torch.randint(0, 16, (LARGE, LARGE))],
        "4 values per channel": book.gather(1, index),
        "80 % zeros": dense * (torch.rand(LARGE, LARGE) > 0.8),
        "80 % zeros, 15 values": torch.randn(15)[index * 3] * (torch.rand(LARGE, LARGE) > 0.8),
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    opening: dict[str, list[float]] = {name: [] for name in forms}
    sizes, sessions = {}, {}
    for name, weight in forms.items():
        layer = nn.Linear(LARGE, LARGE, bias=False).eval()
        layer.weight = nn.Parameter(weight)
        sizes[name] = write(Model.from_module(layer, (torch.randn(2, LARGE),)), folder / f"{name}.onnx").bytes
    for name in [*forms] * OPENINGS:
        start = time.process_time()
        sessions[name] = onnxruntime.InferenceSession(folder / f"{name}.onnx", options)
        opening[name].append(time.process_time() - start)
    feed = {sessions["dense"].get_inputs()[0].name: torch.randn(1, LARGE).numpy()}
    calls: dict[str, list[float]] = {name: [] for name in forms}
    for name in [*forms] * CALLS:
        start = time.process_time()
        sessions[name].run(None, feed)
        calls[name].append(time.process_time() - start)
    print(f"| one {LARGE} × {LARGE} layer | .onnx | opening, CPU s | a call, CPU ms | over dense |")
    print("|---|---|---|---|---|")
    for name in forms:
        ratio = median(each / dense for each, dense in zip(calls[name], calls["dense"]))
        print(
            f"| {name} | {sizes[name]:,} | {median(opening[name]):.2f} | {1e3 * median(calls[name]):.1f} "
            f"| {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
