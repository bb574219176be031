"""Chains of two and three ONNX ops on which ONNX Runtime's optimisations change what is computed.

    python benchmarks/onnxruntime_defects.py [--triples] [--dtype float16] [--avoid]

Every chain is built twice from one table: as ONNX nodes and as torch calls. ONNX Runtime runs it with and
without its optimisations, against torch. `--avoid` applies what
`nncompress.export.lower.onnxruntime.runtime_defects` does to every exported file: with it, nothing may be
listed.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import onnx
import onnx_ir
import onnx_ops_numbers  # noqa: F401  (these four fill OPS)
import onnx_ops_products  # noqa: F401
import onnx_ops_shapes  # noqa: F401
import onnx_ops_windows  # noqa: F401
import onnxruntime
import torch
from onnx_chain import OPS, Chain

from nncompress.export.lower.onnxruntime.runtime_defects import avoid_runtime_defects

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
    parser.add_argument("--avoid", action="store_true", help="as our exported files avoid them")
    parser.add_argument("--only", default="", help="chains that contain this text")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator).to(getattr(torch, arguments.dtype))
    chains: list[tuple[str, ...]] = [(name,) for name in OPS]
    chains += list(itertools.product(OPS, OPS))
    if arguments.triples:
        for middle in BETWEEN:
            chains += [(a, middle, b) for a, b in itertools.product(OPS, OPS)]
    known: set[tuple[str, ...]] = set()
    tried = 0
    for names in chains:
        label = " → ".join(names)
        if arguments.only not in label or any(
            part in known for n in range(1, len(names)) for part in zip(*(names[i:] for i in range(n)))
        ):
            continue
        chain = Chain(x)
        try:
            for name in names:
                OPS[name](chain)
        except (RuntimeError, IndexError, ValueError, NotImplementedError):
            continue  # these do not follow each other
        model = chain.model(SHAPE, arguments.dtype)
        model = avoided(model) if arguments.avoid else model
        tried += 1
        tolerance = TOLERANCE[arguments.dtype]
        found = {
            level: differs(run(model, x.numpy(), level), chain.x.numpy(), tolerance)
            for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
        }
        if found["ORT_DISABLE_ALL"].startswith(("fails", "shape")):
            continue  # ONNX means something else by it: no chain for torch to judge
        if any(found.values()):
            known.add(names)
            written, optimised = (text or "right" for text in found.values())
            print(f"{label}: as written: {written}; optimised: {optimised}", flush=True)
    print(f"{tried} chains tried in {arguments.dtype}, {len(known)} differ from torch")


if __name__ == "__main__":
    main()
