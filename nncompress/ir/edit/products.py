"""Matrix products with a stored weight, said so that passes see a layer and runtimes have a kernel for it.

    linear(x, t(W), b)   ->  addmm(b, x, W), or matmul(x, W) + b where x has more dims
    matmul(x, t(W))      ->  linear(x, W)
    matmul(x, W) + b     ->  addmm(b, x, W), where x is a matrix and b a stored vector
    linear(x, W) + b     ->  linear(x, W, b)

An autoencoder with tied weights decodes so. What reads `t(W)` has no stored weight and is no layer to passes;
a bias that is added by itself keeps ONNX Runtime from its int8 product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import argument

aten = torch.ops.aten

PRODUCTS = ("matmul", "mm", "linear")


def plain_products(model: Model) -> None:
    """Rewrite every such product, in place; calls `model.refresh()` if there was one."""
    changed = False
    for node in list(model.graph.nodes):
        if op_name(node) == "linear" and _is_turned(node.args[1]):
            weight, bias = node.args[1].all_input_nodes[0], argument(node, 2)
            with edit.inserting_before(node) as call:
                product = call(aten.matmul.default, node.args[0], weight)
                if bias is not None and _rank(node.args[0]) == 2:
                    product = call(aten.addmm.default, bias, node.args[0], weight)
                elif bias is not None:
                    product = call(aten.add.Tensor, product, bias)
            edit.replace_node(node, product)
            changed = True
        elif op_name(node) in ("matmul", "mm") and _is_turned(node.args[1]):
            turned: Any = node.args[1]
            with edit.inserting_before(node) as call:
                product = call(aten.linear.default, node.args[0], turned.all_input_nodes[0])
            edit.replace_node(node, product)
            changed = True
        elif op_name(node) == "add" and node.kwargs.get("alpha", 1) == 1:
            for product, bias in (node.args[:2], node.args[1::-1]):
                if _takes_bias(product, bias):
                    with edit.inserting_before(node) as call:
                        if op_name(product) == "linear":
                            product = call(aten.linear.default, *product.args[:2], bias)
                        else:
                            product = call(aten.addmm.default, bias, *product.args[:2])
                    edit.replace_node(node, product)
                    changed = True
                    break
    if changed:
        model.refresh()


def _takes_bias(product: Any, bias: Any) -> bool:
    """A product with a stored matrix that nobody reads but what adds the stored vector to it."""
    if not isinstance(product, fx.Node) or op_name(product) not in PRODUCTS or len(product.users) > 1:
        return False
    data, weight = product.args[:2]
    sizes: Any = [getattr(each, "meta", {}).get("val") for each in (weight, bias)]
    stored = all(isinstance(each, fx.Node) and each.op == "get_attr" for each in (weight, bias))
    if not stored or _rank(weight) != 2 or _rank(bias) != 1:
        return False
    if op_name(product) == "linear":
        return argument(product, 2) is None and sizes[0].shape[0] == sizes[1].shape[0]
    return _rank(data) == 2 and sizes[0].shape[1] == sizes[1].shape[0]


def _is_turned(value: Any) -> bool:
    """A stored matrix with its two dims swapped."""
    if not isinstance(value, fx.Node) or value.op != "call_function":
        return False
    source = value.args[0]
    if not isinstance(source, fx.Node) or source.op != "get_attr" or _rank(source) != 2:
        return False
    if op_name(value) == "permute":
        return [int(d) % 2 for d in value.args[1]] == [1, 0]  # type: ignore[union-attr, arg-type]
    if op_name(value) == "transpose":
        return int(value.args[1]) % 2 != int(value.args[2]) % 2  # type: ignore[arg-type]
    return op_name(value) in ("t", "numpy_T", "mT")


def _rank(node: Any) -> int:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dim() if isinstance(value, torch.Tensor) else -1
