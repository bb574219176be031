"""Matrix products and attention."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import Value


@rule("Gemm")
def gemm(call: Call) -> Value:
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.transpose(0, 1) if call.get("transA", 0) else a
    plain = alpha == 1 and (c is None or (beta == 1 and c.dim() == 1 and a.is_floating_point()))
    if plain and call.get("transB", 0):
        return F.linear(a, b, c)
    b = b.transpose(0, 1) if call.get("transB", 0) else b
    if plain and c is not None:
        return torch.addmm(c, a, b)
    result = torch.matmul(a, b)
    result = result if alpha == 1 else alpha * result
    return result if c is None else result + (c if beta == 1 else beta * c)


@rule("MatMul")
def matmul(call: Call) -> Value:
    return torch.matmul(call.tensor(0), call.tensor(1))


@rule("com.microsoft.FusedMatMul")
def fused_matmul(call: Call) -> Value:
    a, b = call.tensor(0), call.tensor(1)
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise call.refusal("transposed batches")
    a = a.transpose(-1, -2) if call.get("transA", 0) else a
    b = b.transpose(-1, -2) if call.get("transB", 0) else b
    result, alpha = torch.matmul(a, b), call.get("alpha", 1.0)
    return result if alpha == 1 else alpha * result


@rule("Einsum")
def einsum(call: Call) -> Value:
    return torch.einsum(call.get("equation"), *(call.tensor(i) for i in range(len(call))))


@rule("Det")
def determinant(call: Call) -> Value:
    return torch.linalg.det(call.tensor(0))


# --- attention --------------------------------------------------------------------------------------------


@rule("Attention")
def attention(call: Call) -> Value:
    if any(call.outputs[1:]) or any(call.has(i) for i in (4, 5, 6)):
        raise call.refusal("with past keys and values, or more than one output")
    if call.get("softcap", 0.0) or call.get("qk_matmul_output_mode", 0):
        raise call.refusal("with a soft cap")
    if max(call.get("left_window_size", -1), call.get("right_window_size", -1)) >= 0:
        raise call.refusal("with a window")
    q, k, v = (call.tensor(i) for i in range(3))
    call.steps_in("softmax_precision", q)
    flat = q.dim() == 3
    if flat:
        heads, kv_heads = call.get("q_num_heads"), call.get("kv_num_heads")
        q, k, v = (
            t.reshape(t.shape[0], t.shape[1], n, -1).transpose(1, 2)
            for t, n in ((q, heads), (k, kv_heads), (v, kv_heads))
        )
    grouped, mask, causal = q.shape[1] != k.shape[1], call.optional(3), bool(call.get("is_causal", 0))
    if mask is not None and causal:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
        causal = False
    y = F.scaled_dot_product_attention(
        q, k, v, mask, 0.0, causal, scale=call.get("scale"), enable_gqa=grouped
    )
    return y.transpose(1, 2).flatten(2) if flat else y


@rule("RotaryEmbedding", ignores=["num_heads"])  # of inputs of 3 dims, which are refused
def rotary(call: Call) -> Value:
    x, cos, sin = call.tensor(0), call.tensor(1), call.tensor(2)
    if call.has(3) or call.get("interleaved", 0) or call.get("rotary_embedding_dim", 0) or x.dim() != 4:
        raise call.refusal("with positions, interleaved, partial, or of 3 dims")
    a, b = x.chunk(2, -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
