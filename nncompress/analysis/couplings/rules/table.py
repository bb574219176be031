"""Which rule serves which ATen op. An op that is not here, and not tagged pointwise, pins what it touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from nncompress.analysis.couplings.rules import blocks
from nncompress.analysis.couplings.rules import contraction as c
from nncompress.analysis.couplings.rules import indexing as i
from nncompress.analysis.couplings.rules import movement as m
from nncompress.analysis.couplings.rules import pointwise as p
from nncompress.analysis.couplings.rules import recurrent as r
from nncompress.ir.graph.ops import op_name

Rule = Callable[..., Any]

_TABLE: list[tuple[Rule, str]] = [
    # -- data movement: the labels move as the data do
    (m.reshape, "view reshape _unsafe_view flatten unflatten squeeze unsqueeze"),
    (m.permute, "permute transpose t"),
    (m.expand, "expand broadcast_to"),
    (m.repeat, "repeat tile"),
    (m.repeat_interleave, "repeat_interleave"),
    (m.slice_, "slice narrow"),
    (m.select, "select"),
    (m.split, "split split_with_sizes chunk tensor_split unsafe_chunk unsafe_split"),
    (m.unbind, "unbind"),
    (m.getitem, "getitem"),
    (m.cat, "cat"),
    (m.stack, "stack"),
    (m.pad, "pad constant_pad_nd"),
    (m.flip, "flip"),
    (m.roll, "roll"),
    (m.rot90, "rot90"),
    (m.block_diag, "block_diag"),
    (m.diagonal, "diagonal diag_embed"),
    (blocks.pixel_shuffle, "pixel_shuffle"),
    (blocks.pixel_unshuffle, "pixel_unshuffle"),
    (blocks.channel_shuffle, "channel_shuffle native_channel_shuffle"),
    (blocks.unfold_patches, "im2col"),
    (blocks.fold_patches, "col2im"),
    (blocks.windows, "unfold"),
    # -- reading and writing by index
    (i.index, "index"),
    (i.index_put, "index_put"),
    (i.index_select, "index_select"),
    (i.slice_scatter, "slice_scatter"),
    (i.select_scatter, "select_scatter"),
    (i.scattered, "gather scatter scatter_add scatter_reduce index_add index_copy index_reduce index_fill"),
    (i.masked_scatter, "masked_scatter"),
    (i.sampled, "grid_sampler grid_sampler_2d grid_sampler_3d"),
    (i.embedding_bag, "embedding_bag _embedding_bag"),
    (i.looked_up, "bucketize"),
    # -- contractions: the contracted dims of both operands are united
    (c.linear, "linear"),
    (c.matmul, "matmul mm bmm mv dot"),
    (c.addmm, "addmm baddbmm"),
    (c.addbmm, "addbmm"),
    (c.addr, "addr"),
    (c.cdist, "cdist"),
    (c.einsum, "einsum"),
    (c.attention, "scaled_dot_product_attention"),
    (c.convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"),
    (c.bilinear, "bilinear"),
    (c.embedding, "embedding"),
    (r.recurrent_cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    (r.recurrent, "lstm gru rnn_tanh rnn_relu"),
    # -- norms: per-channel vectors join the channels
    (p.batch_norm, "batch_norm instance_norm"),
    (p.layer_norm, "layer_norm rms_norm"),
    (p.group_norm, "group_norm"),
    # -- reductions fix what they reduce
    (
        p.reduce,
        "mean sum amax amin max min any all prod norm linalg_vector_norm var std var_mean std_mean logsumexp"
        " argmax argmin count_nonzero aminmax nansum median nanmedian quantile nanquantile kthvalue mode",
    ),
    (
        p.along,
        "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2"
        " fft_hfft2 fft_ihfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn"
        " softmax log_softmax softmin _softmax _log_softmax cumsum cumprod logcumsumexp sort topk argsort"
        " cummax cummin",
    ),
    (
        p.spatial,
        "max_pool1d max_pool2d max_pool3d avg_pool1d max_pool2d_with_indices max_pool3d_with_indices"
        " adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
        " adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d"
        " upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d"
        " _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"
        " _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d"
        " replication_pad1d replication_pad2d replication_pad3d",
    ),
    (p.average_pool, "avg_pool2d avg_pool3d"),
    (p.unpooled, "max_unpool2d max_unpool3d"),
    (p.dist, "dist"),
    (
        p.last_two,
        "tril triu inverse linalg_inv linalg_pinv linalg_matrix_exp linalg_cholesky cholesky_inverse",
    ),
    (p.solved, "linalg_solve linalg_solve_triangular cholesky_solve"),
    (p.cross, "linalg_cross"),
    (p.renorm, "renorm"),
    # -- pointwise, where torch's own tag is missing; all others carry it
    (
        p.pointwise,
        "add sub mul div rsub pow where masked_fill maximum minimum lerp addcmul addcdiv hardswish"
        " hardsigmoid hardtanh relu relu6 selu elu celu gelu silu mish leaky_relu softplus threshold"
        " log_sigmoid clamp clamp_min clamp_max softsign hardshrink softshrink tanhshrink sigmoid tanh"
        " rsqrt sqrt exp log1p floor_divide bitwise_and bitwise_or logical_and logical_or logical_not"
        " heaviside nan_to_num atan2 fmod remainder isnan isinf copy complex polar _conj _neg_view frexp"
        " fake_quantize_per_tensor_affine_cachemask",
    ),
    (p.gated, "glu"),
    (p.as_complex, "view_as_complex"),
    (p.as_real, "view_as_real"),
    (
        p.quantized,
        "quantize_per_tensor dequantize_per_tensor quantize_per_channel dequantize_per_channel"
        " dequantize_per_channel_group",
    ),
    (p.prelu, "prelu _prelu_kernel"),
    (
        p.follow_first,
        "dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout to _to_copy type_as"
        " contiguous clone boundary detach alias lift_fresh_copy lift_fresh zeros_like"
        " ones_like full_like empty_like",
    ),
    # -- constants
    (p.created, "zeros ones full empty new_zeros new_ones new_full new_empty"),
    (p.fixed, "arange linspace eye scalar_tensor tril_indices triu_indices logspace one_hot"),
]
RULES: dict[str, Rule] = {name: rule for rule, names in _TABLE for name in names.split()}

NAMESPACES = ("aten", "quantized_decomposed", "transformers", "nncompress")

# Rules under which a constant expression (weights in, weights out) keeps the labels of its operands.
TRANSPARENT = {
    m.reshape, m.permute, m.expand, m.slice_, m.select, m.split, m.unbind, m.getitem, m.cat, m.stack, i.index,
    p.pointwise, p.quantized, p.follow_first, p.created, p.fixed,
}  # fmt: skip


def rule_of(node: fx.Node) -> Rule | None:
    """The rule for a call, None where there is none: nothing it touches may be removed."""
    target = node.target
    name = op_name(node)
    if isinstance(target, torch._ops.OpOverload):
        if target._schema.is_mutable or target.namespace not in NAMESPACES:
            return None
        if name in ("min", "max") and target._overloadname == "other":
            return p.pointwise
        return RULES.get(name) or (p.pointwise if torch.Tag.pointwise in target.tags else None)
    return m.getitem if name == "getitem" else None
