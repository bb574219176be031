"""SiLU between 8-bit values as one operator of ONNX Runtime's own.

Spelled out it is a sigmoid and a product, for each of which the runtime dequantizes the same bytes once more.
QuickGelu(x) = x · sigmoid(alpha · x) with alpha = 1 is the same function.
"""

from __future__ import annotations

import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import insert, producer, replace

DOMAIN, OPSET = "com.microsoft", 1


def lower_silu(graph: ir.Graph) -> int:
    """Rewrite in place, how many."""
    products = [node for node in graph if node.op_type == "Mul" and _is_silu(node)]
    for product in products:
        data = next(v for v in product.inputs if producer(v, "DequantizeLinear") is not None)
        node = ir.node("QuickGelu", [data], {"alpha": 1.0}, domain=DOMAIN)
        replace(product.outputs[0], insert(graph, product, node, product.outputs[0]))
    if products:
        graph.opset_imports.setdefault(DOMAIN, OPSET)
    return len(products)


def _is_silu(product: ir.Node) -> bool:
    """x · sigmoid(x) of bytes."""
    for one, other in (product.inputs, product.inputs[::-1]):
        sigmoid = producer(one, "Sigmoid")
        if sigmoid is not None and sigmoid.inputs[0] is other:
            return producer(other, "DequantizeLinear") is not None
    return False
