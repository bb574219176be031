"""Chains of two and three ONNX ops on which ONNX Runtime's optimisations change what is computed.

    python -m benchmarks.onnx_ops.defects [--triples | --sample 5000] [--dtype float16] [--avoid]

Every chain is built twice from one table: as ONNX nodes and as torch calls. ONNX Runtime runs it with and
without its optimisations, against torch. `--avoid` applies what
`nncompress.exporting.lower.onnxruntime.runtime_defects` does to every exported file: with it, nothing may be
listed.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch

from benchmarks.onnx_ops import (
    numbers,  # noqa: F401  (these four fill OPS)
    products,  # noqa: F401
    shapes,  # noqa: F401
    windows,  # noqa: F401
)
from benchmarks.onnx_ops.chain import OPS, Chain
from nncompress.exporting.lower.onnxruntime.runtime_defects import avoid_runtime_defects

SHAPE = (2, 4, 6, 7)
TOLERANCE = {"float32": 1e-3, "float64": 1e-3, "float16": 5e-2}
BETWEEN = ("relu", "clip(-0.5,0.5)", "transpose(0,1,3,2)", "pad(0)", "pad(1)", "concat(x,x;1)", "x*2")


def run(model: bytes, x: np.ndarray, level: str) -> np.ndarray | str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return np.array(session.run(None, {"x": x})[0])
    except Exception as error:  # the runtime's own exception classes share no base but Exception
        return str(error).splitlines()[0]


def differs(got: np.ndarray | str, expected: np.ndarray, tolerance: float) -> str:
    """What is wrong with it, or ""."""
    if isinstance(got, str):
        return f"fails: {got[:100]}"
    if got.shape != expected.shape:
        return f"shape {got.shape}, not {expected.shape}"
    a, b = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(a[np.isinf(b)], b[np.isinf(b)]):
        return "infinities or NaN in other places"
    scale = np.abs(b[finite]).max(initial=0) or 1.0
    error = np.abs(a[finite] - b[finite]).max(initial=0) / scale
    return f"off by {error:.2g}" if error > tolerance else ""


def avoided(model: bytes) -> bytes:
    loaded = onnx_ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.load_from_string(model)))
    avoid_runtime_defects(loaded.graph)
    return onnx_ir.serde.serialize_model(loaded).SerializeToString()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    parser.add_argument(
        "--triples", action="store_true", help="one of the BETWEEN ops between, before and behind"
    )
    parser.add_argument("--sample", type=int, help="this many of the triples, drawn at random, and no pairs")
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--avoid", action="store_true", help="as our exported files avoid them")
    parser.add_argument("--only", default="", help="chains that contain this text")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator).to(getattr(torch, arguments.dtype))
    triples = [(a, middle, b) for middle in BETWEEN for a, b in itertools.product(OPS, OPS)]
    chains: list[tuple[str, ...]] = []
    if arguments.sample is not None:
        chains = random.Random(arguments.seed).sample(triples, arguments.sample)
    else:
        chains = [(name,) for name in OPS] + list(itertools.product(OPS, OPS))
        chains += triples if arguments.triples else []

    @cache
    def found(names: tuple[str, ...]) -> dict[str, str] | None:
        """What is wrong with a chain, as written and optimised; None where there is nothing to compare."""
        return compared(names, x, arguments.dtype, avoid=arguments.avoid)

    listed: set[tuple[str, ...]] = set()
    tried = 0
    for names in chains:
        if arguments.only not in " → ".join(names):
            continue
        said = found(names)
        tried += said is not None
        if said is None or not any(said.values()):
            continue
        smallest = next(part for part in parts(names) if any((found(part) or {}).values()))
        if smallest not in listed:
            listed.add(smallest)
            written, optimised = (text or "right" for text in (found(smallest) or {}).values())
            print(f"{' → '.join(smallest)}: as written: {written}; optimised: {optimised}", flush=True)
    print(f"{tried} chains compared in {arguments.dtype}; {len(listed)} smallest ones differ from torch")


def parts(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The chains inside it, the shortest first, itself last."""
    for length in range(1, len(names) + 1):
        yield from zip(*(names[start:] for start in range(length)))


def compared(names: tuple[str, ...], x: torch.Tensor, dtype: str, *, avoid: bool) -> dict[str, str] | None:
    """Per level of optimisation what is wrong, or ""; None for ops that do not follow each other, or by which
    ONNX means something else than torch."""
    chain = Chain(x)
    try:
        for name in names:
            OPS[name](chain)
    except (RuntimeError, IndexError, ValueError, NotImplementedError):
        return None
    model = chain.model(SHAPE, dtype)
    model = avoided(model) if avoid else model
    found = {
        level: differs(run(model, x.numpy(), level), chain.x.numpy(), TOLERANCE[dtype])
        for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
    }
    return None if found["ORT_DISABLE_ALL"].startswith(("fails", "shape")) else found


if __name__ == "__main__":
    main()
