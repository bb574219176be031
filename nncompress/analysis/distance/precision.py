"""How far two runtimes that compute the same may be apart, by the coarsest arithmetic in a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from nncompress.errors import NNCompressError
from nncompress.ir import Model
from nncompress.ir.formats.precision import in_precision
from nncompress.ir.graph.ops import MOVES, op_name

# Allowed ‖difference‖₂ / ‖output‖₂, and median |difference| / root mean square of the output, since an
# error that all values share may be small in the first. In float32 both runtimes add in different order: 1e-6
# per layer is usual, a wrong op is off by 0.1 or more. In half precision, ONNX Runtime computes in float32
# between casts while torch rounds after every op. In int8, an activation that lies on a rounding boundary
# falls to either side, and what follows differs by a whole step: 1e-2 on trained ResNets, 4e-2 at most in any
# network tried. A quantized file run as it is written, in floats, meets few such boundaries.
# Kernels for weights of 4 bits round what they multiply to 8 bits: 6e-3 for each product.
TOLERANCE = {
    "float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1, "int8": 1e-1, "int8 as written": 2e-2, "int4": 1e-1,
    "int4 as written": 1e-3,
}  # fmt: skip
MEDIAN = {
    "float32": 2e-4, "float16": 1e-2, "bfloat16": 5e-2, "int8": 5e-2, "int8 as written": 5e-3, "int4": 5e-2,
    "int4 as written": 2e-4,
}  # fmt: skip


# What a runtime's kernel of a sigmoid is away from it, at most: ONNX Runtime's is exact to the last places of
# 1, so that 1e-8 is wrong by per cents.
SIGMOID = 2 * torch.finfo(torch.float32).eps
# A graph may amplify rounding (a variance as the difference of two sums). How much, its own run in float64
# tells; another order of the same sums may be some times as far away, and is no longer told from a wrong op
# beyond the last bound.
TIMES_OWN_ROUNDING = 10
MOST_AMPLIFIED = 50.0


def resolutions(model: Model) -> list[float]:
    """Per output, how far apart two runtimes' values may be whatever their size: where a sigmoid makes it."""
    results: Any = model.graph.output_node().args[0]
    found = []
    for node in results:
        while isinstance(node, fx.Node) and op_name(node) in MOVES:
            node = node.args[0]
        made = isinstance(node, fx.Node) and op_name(node) == "sigmoid"
        found.append(SIGMOID if made else 0.0)
    return found


def amplification(model: Model, inputs: Sequence[Tensor], output: int) -> float:
    """How many times `TOLERANCE["float32"]` an output may be away on these inputs, 1 unless the graph
    amplifies rounding: then by what its float32 run is away from one in float64."""
    if precision_of(model) != "float32":
        return 1.0
    try:
        exact = in_precision(model, "float64")
        with torch.no_grad():
            wide = (x.double() if x.dtype == torch.float32 else x for x in inputs)
            expected = exact.outputs_of(*wide)[output].double()
            got = model.outputs_of(*(x.clone() for x in inputs))[output].double()
    except (NNCompressError, RuntimeError):  # an op that has no kernel in float64
        return 1.0
    rounding = float((got - expected).norm() / expected.norm())
    allowed = TIMES_OWN_ROUNDING * rounding / TOLERANCE["float32"]
    return min(max(1.0, allowed), MOST_AMPLIFIED) if math.isfinite(allowed) else 1.0


def beyond(difference: Tensor, resolution: float) -> Tensor:
    """What of a difference the resolution does not explain."""
    return difference.sign() * (difference.abs() - resolution).clamp(min=0) if resolution else difference


def precision_of(model: Model) -> str:
    """The coarsest arithmetic in the graph: a key of `TOLERANCE`."""
    if any(op_name(node).startswith("quantize_per_") for node in model.graph.nodes):
        return "int8"
    if any(op_name(node) == "dequantize_per_channel_group" for node in model.graph.nodes):
        return "int4"
    dtypes = {t.dtype for t in model.graph_module.state_dict().values()}
    dtypes |= {spec.torch_dtype() for spec in model.inputs}
    results = [node.meta.get("val") for node in model.graph.nodes]
    dtypes |= {leaf.dtype for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)}
    coarse = (kind for kind in ("bfloat16", "float16") if getattr(torch, kind) in dtypes)
    return next(coarse, "float32")
