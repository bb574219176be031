"""The operators a `.pt2` may call: torch's tensor operators and arithmetic on sizes, nothing else."""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators

from nncompress.ir.graph.normal_form.normalize import WRITTEN_OUT
from nncompress.loading.json_schema import Rejected, plain

# symbolic arithmetic that torch keeps as Python functions (`_SYM_OPS`)
_PYTHON_TARGETS = {
    *("_operator.eq", "_operator.ne", "_operator.le", "_operator.ge", "_operator.lt", "_operator.gt"),
    *("_operator.add", "_operator.sub", "_operator.mul", "_operator.neg", "_operator.pos", "_operator.pow"),
    *("_operator.floordiv", "_operator.truediv", "_operator.mod", "_operator.lshift", "_operator.rshift"),
    *("_operator.and_", "_operator.or_", "math.trunc", "torch._sym_sqrt", "torch.sym_not", "torch.sym_int"),
    *("torch.sym_float", "torch.sym_ite", "torch.sym_max", "torch.sym_min"),
}
_HIGHER_ORDER_TARGETS = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled",
    "torch.ops.higher_order.wrap_with_autocast",
}
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed)\.(\w+)\.(\w+)", re.ASCII)

# Beside these: every pointwise operator of torch (by its tag), and of each operator its in-place form.
_ATEN_NAMES = """
linear bilinear matmul mm bmm mv dot vdot inner outer ger addmm addmv addbmm baddbmm addr einsum tensordot
chain_matmul linalg_matmul linalg_multi_dot linalg_vecdot kron cross linalg_cross _int_mm _trilinear
conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution
_convolution_mode lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
scaled_dot_product_attention _scaled_dot_product_attention_math
_scaled_dot_product_flash_attention_for_cpu affine_grid_generator

batch_norm instance_norm layer_norm group_norm rms_norm _fused_rms_norm native_batch_norm
native_layer_norm native_group_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
_native_batch_norm_legit_functional _batch_norm_no_update _batch_norm_with_update _weight_norm
_weight_norm_interface norm_except_dim renorm norm linalg_norm linalg_vector_norm linalg_matrix_norm
frobenius_norm nuclear_norm dist cosine_similarity pairwise_distance cdist _cdist_forward pdist
_pdist_forward dropout alpha_dropout feature_dropout feature_alpha_dropout native_dropout

avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
_adaptive_avg_pool2d _adaptive_avg_pool3d max_pool1d max_pool1d_with_indices max_pool2d
max_pool2d_with_indices max_pool3d max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d max_unpool2d max_unpool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d
upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
_upsample_bicubic2d_aa grid_sampler grid_sampler_2d grid_sampler_3d pixel_shuffle pixel_unshuffle
channel_shuffle native_channel_shuffle im2col col2im

relu6 gelu glu log_sigmoid log_sigmoid_forward hardswish prelu _prelu_kernel rrelu_with_noise softmax
_softmax _safe_softmax log_softmax _log_softmax special_softmax special_log_softmax logsumexp
special_logsumexp absolute arccos arccosh arcsin arcsinh arctan arctan2 arctanh negative divide multiply
subtract floor_divide fix clip complex polar greater greater_equal less less_equal not_equal isclose
isreal isin chalf special_digamma special_erf special_erfc special_erfinv special_exp2 special_expit
special_expm1 special_gammainc special_gammaincc special_gammaln special_i0 special_log1p special_logit
special_ndtr special_polygamma special_psi special_round special_sinc special_xlogy
__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__

sum nansum mean nanmean prod var std var_mean std_mean any all amax amin aminmax max min argmax argmin
median nanmedian mode quantile nanquantile kthvalue cumsum cumprod cummax cummin logcumsumexp diff
trapezoid trapz cumulative_trapezoid count_nonzero trace cov corrcoef sum_to_size bincount histc
sort argsort msort topk searchsorted bucketize unique_consecutive unique_dim _unique2 equal allclose

embedding embedding_renorm embedding_bag gather scatter scatter_add scatter_reduce index index_put
index_select
index_add index_copy index_fill index_reduce take take_along_dim put masked_fill masked_select
masked_scatter nonzero nonzero_numpy nonzero_static argwhere where one_hot repeat_interleave
_unsafe_index _unsafe_index_put slice_scatter select_scatter diagonal_scatter as_strided_scatter

view reshape view_as reshape_as flatten unflatten ravel squeeze unsqueeze transpose t numpy_T mT mH
adjoint matrix_H swapaxes swapdims permute movedim moveaxis expand expand_as broadcast_to
broadcast_tensors select slice narrow split split_with_sizes unsafe_split unsafe_split_with_sizes
unsafe_chunk chunk tensor_split hsplit vsplit dsplit unbind unfold diagonal linalg_diagonal as_strided
real imag conj resolve_conj resolve_neg view_as_complex view_as_real detach alias lift_fresh
lift_fresh_copy contiguous _unsafe_view _conj _reshape_from_tensor _shape_as_tensor
to _to_copy type_as clone copy cat concat concatenate stack hstack vstack dstack row_stack
column_stack block_diag cartesian_prod combinations meshgrid repeat tile roll rot90 flip fliplr flipud
tril triu diag diag_embed diagflat atleast_1d atleast_2d atleast_3d pad constant_pad_nd _pad_circular
_pad_enum reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
replication_pad3d fill zero fill_diagonal view_copy expand_copy permute_copy slice_copy select_copy
squeeze_copy unsqueeze_copy transpose_copy t_copy split_copy split_with_sizes_copy unbind_copy
unfold_copy diagonal_copy as_strided_copy alias_copy detach_copy view_as_complex_copy view_as_real_copy

arange linspace logspace range eye full full_like ones ones_like zeros zeros_like new_full new_ones
new_zeros empty empty_like empty_permuted empty_strided new_empty new_empty_strided scalar_tensor
tril_indices triu_indices vander bartlett_window blackman_window hamming_window hann_window kaiser_window
rand rand_like randn randn_like randint randint_like randperm bernoulli normal normal_functional uniform
exponential multinomial

fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft
fft_rfft2 fft_irfft2 fft_rfftn fft_irfftn fft_hfft fft_ihfft fft_fftshift fft_ifftshift fft_fftfreq
fft_rfftfreq stft istft
linalg_inv linalg_inv_ex inverse linalg_pinv pinverse linalg_solve linalg_solve_ex _linalg_solve_ex det
linalg_det _linalg_det logdet slogdet linalg_slogdet _linalg_slogdet linalg_qr qr linalg_svd _linalg_svd
svd linalg_svdvals linalg_eigh _linalg_eigh linalg_eigvalsh linalg_cholesky linalg_cholesky_ex cholesky
linalg_matrix_power matrix_power linalg_matrix_exp matrix_exp linalg_matrix_rank linalg_cond
linalg_solve_triangular linalg_vander

mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div
cosine_embedding_loss soft_margin_loss

sym_size sym_numel sym_stride sym_storage_offset sym_is_contiguous sym_constrain_range
sym_constrain_range_for_size size stride numel dim is_floating_point is_complex item
_local_scalar_dense _assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async
_functional_assert_scalar _functional_sym_constrain_range _functional_sym_constrain_range_for_size
_is_all_true _is_any_true is_nonzero
"""
_ATEN = frozenset(_ATEN_NAMES.split())
_PRIMS = frozenset(
    {"convert_element_type", "broadcast_in_dim", "view_of", "iota", "sum", "amax", "amin", "prod", "var"}
)

# Forms of an admitted operator that index memory by numbers which nothing checks.
_UNCHECKED_FORMS = frozenset(
    [
        *(f"{name}.data" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")),  # batch sizes of a sequence
        *("repeat_interleave.Tensor", "repeat_interleave.self_Tensor"),  # counts, whose sum overflows
        "_native_batch_norm_legit.no_stats",
    ]
)


@functools.cache
def _pointwise() -> frozenset[str]:
    """The operators whose outputs depend on the inputs element by element: no index, no size."""
    found = set()
    for operator in _registered_operators():
        namespace, _, name = operator.partition("::")
        name, _, overload = name.partition(".")
        if name.startswith("_") or name.endswith("_backward") or "polynomial" in name:  # of any degree
            continue
        if namespace == "aten":
            packet = getattr(torch.ops.aten, name, None)
            form = getattr(packet, overload or "default", None)
            if form is not None and torch.Tag.pointwise in form.tags:
                found.add(name)
    return frozenset(found)


def _is_admitted(namespace: str, name: str) -> bool:
    if namespace == "quantized_decomposed":
        return True  # written in Python, of the others
    if namespace == "prims":
        return name in _PRIMS
    functional = name.removesuffix("_") if not name.endswith("__") else name
    return name in _ATEN or functional in _ATEN or name in _pointwise() or functional in _pointwise()


@functools.cache
def _registered_operators() -> frozenset[str]:
    """`aten::add.Tensor` …: what the dispatcher knows. TorchScript's builtins (aten::save) are not in it."""
    return frozenset(torch._C._dispatch_get_all_op_names())


def operator_name(value: Any) -> str:
    """The name of an operator that computes on tensors and sizes and touches nothing else."""
    target = plain(str)(value)
    if target in _PYTHON_TARGETS or target in _HIGHER_ORDER_TARGETS:
        return target
    match = _OPERATOR.fullmatch(target)
    if match is None:
        if target.startswith("torch._functorch."):
            raise Rejected(
                f"{target!r} is a step of torch's vmap, grad or jvp; before torch.export.save, "
                "program.run_decompositions({}) makes operators of it"
            )
        if target.startswith("torch.ops.higher_order."):
            raise Rejected(f"{target!r} is no operator on tensors: {WRITTEN_OUT}")
        raise Rejected(f"the function {target!r} is not one of torch's tensor operators", code=True)
    namespace, name, overload = match.groups()
    if not _is_admitted(namespace, name) or f"{name}.{overload}" in _UNCHECKED_FORMS:
        raise _none_of_those(target)
    suffix = "" if overload == "default" else f".{overload}"
    if f"{namespace}::{name}{suffix}" not in _registered_operators():
        raise Rejected(f"the operator {target!r} does not exist in this version of torch")
    operator = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    if any(argument.is_out for argument in operator._schema.arguments):  # sort.values is such a form, too
        raise _none_of_those(target)
    return target


def _none_of_those(target: str) -> Rejected:
    return Rejected(f"the operator {target!r} is none of those that a model is made of here", code=True)
