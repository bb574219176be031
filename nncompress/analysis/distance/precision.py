"""How far two runtimes that compute the same may be apart, by the coarsest arithmetic in a graph."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name

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
