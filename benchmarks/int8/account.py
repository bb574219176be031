"""What is lost on the way to 4x: where int8's time goes, against a quarter of float32's, by kind of layer.

    python -m benchmarks.int8.account [--networks resnet18 ...] [--folder DIR]

Both files of `latency.py` run under ONNX Runtime's profiler, one thread, batch 1; times are the least of
20 calls. VNNI multiplies four times as many 8-bit integers per instruction as AVX512 floats: a quarter of the
float32 time is what layers would take if nothing but arithmetic counted. What int8 takes beyond that is lost,
in milliseconds and as a share of int8's time. With AMX, long products can take less than a quarter.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from math import prod
from pathlib import Path

import numpy as np
import onnx
import torch

from benchmarks.int8.latency import NETWORKS, prepare
from nncompress.benchmarking.latency.int8_speed import profile
from nncompress.exporting.check.int8_coverage import FLOAT_KERNELS, INT8_KERNELS, layer_of
from nncompress.exporting.lower.onnxruntime.int8.tiles import LONG_CACHED, LONG_POINTWISE

KINDS = {  # and what bounds them
    "first convolution": "gathering 3 channels",
    "depthwise": "memory: 9 products per output, no dot product",
    "short products": "rescaling outputs, of few products each",
    "long products": "arithmetic",
    "linear": "memory: at batch 1 each weight is used once",
    "additions, pools": "memory; float32 adds inside convolutions",
    "conversion": "rounding the input, laying it out channels last",
    "float": "no int8 kernel",
}


def kinds(path: Path) -> dict[str, str]:
    """The kind of each convolution and matrix product in a float file, by the names it goes by.

    The runtime names a convolution after the last op that it fused into it, or after that op's result.
    """
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    found: dict[str, str] = {}
    for node in graph.node:
        kind = None
        if node.op_type == "Conv":
            kind = _kind_of(node, shapes[node.input[1]], first=not found)
        elif node.op_type in ("Gemm", "MatMul"):
            kind = "linear"
        elif node.op_type in ("BatchNormalization", "Relu", "Clip", "Add"):
            kind = next((found[name] for name in node.input if name in found), None)
        if kind is not None:
            found[node.name] = found[node.output[0]] = kind
    return found


def _kind_of(conv: onnx.NodeProto, shape: list[int], *, first: bool) -> str:
    if first:
        return "first convolution"
    if next((a.i for a in conv.attribute if a.name == "group"), 1) > 1:
        return "depthwise"
    long = prod(shape[1:]) >= (LONG_POINTWISE if prod(shape[2:]) == 1 else LONG_CACHED)
    return "long products" if long else "short products"


def times(path: Path, x: np.ndarray, layers: dict[str, str]) -> dict[str, float]:
    """Milliseconds per call of every kind."""
    name = onnx.load(path, load_external_data=False).graph.input[0].name
    spent: dict[str, float] = defaultdict(float)
    for node, op, micros in profile(str(path), {name: x}, calls=20):
        if op in FLOAT_KERNELS | INT8_KERNELS:
            kind = layers.get(layer_of(node), "float")
        elif (
            op in ("QLinearAdd", "QLinearGlobalAveragePool", "QLinearConcat", "Add", "ReduceMean")
            or "Pool" in op
        ):
            kind = "additions, pools"
        else:
            kind = "conversion"
        spent[kind] += micros / 1000
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--folder", type=Path, help="keep the files there, and use those that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for name in options.networks:
            paths = {arm: folder / f"{name}-{arm}.onnx" for arm in ("float32", "ours")}
            if not all(path.exists() for path in paths.values()):
                prepare(name, folder)
            size = NETWORKS[name][1]
            x = torch.randn(1, 3, size, size).numpy()
            layers = kinds(paths["float32"])
            before, after = (times(path, x, layers) for path in paths.values())
            total, whole = sum(after.values()), sum(before.values())
            print(f"\n{name}: {whole:.2f} ms -> {total:.2f} ms, {whole / total:.2f}x")
            print(f"{'':20}{'float32':>9}{'int8':>9}{'speed':>8}{'lost':>9}{'of int8':>9}  bound by")
            for kind, bound in KINDS.items():
                a, b = before.get(kind, 0.0), after.get(kind, 0.0)
                if a or b:
                    speed = f"{a / b:7.2f}x" if a and b else " " * 8
                    print(
                        f"{kind:20}{a:9.3f}{b:9.3f}{speed}{b - a / 4:9.3f}{(b - a / 4) / total:9.0%}  {bound}"
                    )


if __name__ == "__main__":
    main()
