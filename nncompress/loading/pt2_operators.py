"""The operators a `.pt2` may call: torch's tensor operators and arithmetic on sizes, nothing else."""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators

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

# They read and write files by name, or memory outside their tensors when told wrong sizes.
_UNSAFE = {
    "from_file",
    "save",
    "segment_reduce",
    "ctc_loss",
    "set",
    "set_",
    "resize",
    "resize_",
    "resize_as_",
}
_BACKENDS = re.compile(
    r"(sparse|nested|mkldnn|quantized|fbgemm|miopen|cudnn|inductor)_\w*|(lstm|gru)_\w*data"
)

# Operators with a leading underscore leave their checks to the caller (`_reshape_alias` reads beyond a
# tensor's end): only those that exports hold, and that check what they index, are let through.
_PRIVATE = {
    *("__and__", "__or__", "__xor__", "__iand__", "__ior__", "__ixor__", "__lshift__", "__rshift__"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_prelu_kernel", "_trilinear", "_embedding_bag"),
    *("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_functional_assert_async"),
    *("_convolution", "_convolution_mode", "_int_mm", "_scaled_mm", "_grouped_mm", "_cdist_forward"),
    *("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_no_update"),
    *("_native_batch_norm_legit_functional", "_batch_norm_with_update", "_weight_norm"),
    *("_weight_norm_interface", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_fused_attention_overrideable", "_softmax", "_log_softmax", "_safe_softmax"),
    *("_fft_c2c", "_fft_c2r", "_fft_r2c", "_conj", "_conj_physical", "_neg_view", "_stack", "_to_copy"),
    *("_is_all_true", "_is_any_true", "_linalg_det", "_linalg_eigh", "_linalg_slogdet", "_linalg_svd"),
    *("_linalg_solve_ex", "_local_scalar_dense", "_shape_as_tensor", "_unique2", "_unsafe_index"),
    *("_unsafe_view", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d"),
    *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
}


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
        raise Rejected(f"the function {target!r} is not one of torch's tensor operators", code=True)
    namespace, name, overload = match.groups()
    if name in _UNSAFE or _BACKENDS.fullmatch(name) or (name.startswith("_") and name not in _PRIVATE):
        raise Rejected(f"the operator {target!r} can reach beyond the model's tensors", code=True)
    suffix = "" if overload == "default" else f".{overload}"
    if f"{namespace}::{name}{suffix}" not in _registered_operators():
        raise Rejected(f"the operator {target!r} does not exist in this version of torch")
    return target
