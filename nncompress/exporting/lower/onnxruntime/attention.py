"""Attention as ONNX products, for tensors of any number of dims.

torch 2.13's exporter takes four dims only, and where a bool mask hides everything from a query, its result is
the mean of the values, not the zeros that torch gives. `MatMul` broadcasts leading dims as torch does, so
nothing has to be merged:

    softmax(query · scale @ keyᵀ + mask) @ value
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`."""
    from onnxscript import opset20 as op

    def constant(number: float, like) -> Any:
        value: Any = ir.tensor(number, dtype=like.dtype)
        return op.Constant(value=value)

    def attention(
        query,  # [..., heads, L, E]
        key,  # [..., heads, S, E]
        value,  # [..., heads, S, V]
        attn_mask=None,  # broadcasts to [..., heads, L, S]
        dropout_p=0.0,
        is_causal=False,
        *,
        scale=None,
        enable_gqa=False,
    ):
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        rank = len(key.shape)
        axes = [*range(rank - 2), rank - 1, rank - 2]
        if enable_gqa:
            key, value = (_repeat_heads(op, each, query.shape[-3]) for each in (key, value))
        scaled = op.Mul(query, constant(factor, query))
        scores = op.MatMul(scaled, op.Transpose(key, perm=axes))
        if is_causal:
            attn_mask = _lower_triangle(op, query, key)
        if attn_mask is None:
            return op.MatMul(op.Softmax(scores, axis=-1), value)
        if is_causal or attn_mask.dtype == ir.DataType.BOOL:
            hidden = constant(-math.inf, query)
            scores = op.Where(attn_mask, scores, hidden)
        else:
            scores = op.Add(scores, op.CastLike(attn_mask, scores))
        weights = op.Softmax(scores, axis=-1)
        if not is_causal:  # a row of which nothing is to be seen: 0 / 0
            nothing = constant(0.0, query)
            weights = op.Where(op.IsNaN(weights), nothing, weights)
        return op.MatMul(weights, value)

    return {torch.ops.aten.scaled_dot_product_attention.default: attention}


def _repeat_heads(op, tensor, heads: int):
    """[..., h, S, E] -> [..., heads, S, E], each head heads / h times in a row (grouped-query attention)."""
    shape = list(tensor.shape)
    if shape[-3] == heads:
        return tensor
    ones = [1] * (len(shape) - 2)
    apart = op.Unsqueeze(tensor, op.Constant(value_ints=[len(shape) - 2]))
    repeated = op.Expand(apart, op.Constant(value_ints=[*ones, heads // shape[-3], 1, 1]))
    return op.Reshape(repeated, op.Constant(value_ints=[*[0] * (len(shape) - 3), heads, -1, shape[-1]]))


def _lower_triangle(op, query, key):
    """bool [L, S]: position i sees the first i + 1."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    rows, columns = (op.Squeeze(op.Shape(each, start=-2, end=-1)) for each in (query, key))
    last = op.Unsqueeze(op.Range(zero, rows, one), op.Constant(value_ints=[1]))
    return op.GreaterOrEqual(last, op.Range(zero, columns, one))
