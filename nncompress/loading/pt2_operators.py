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
_FILE_OPERATORS = {"from_file", "save"}  # they read and write files by name


@functools.cache
def _registered_operators() -> frozenset[str]:
    """`aten::add.Tensor` …: what the dispatcher knows. TorchScript's builtins (aten::save) are not in it."""
    return frozenset(torch._C._dispatch_get_all_op_names())


def operator_name(value: Any) -> str:
    """The name of an operator that computes on tensors and sizes and touches nothing else."""
    target = plain(str)(value)
    if target in _PYTHON_TARGETS or target in _HIGHER_ORDER_TARGETS:
        return target
    if match := _OPERATOR.fullmatch(target):
        namespace, name, overload = match.groups()
        suffix = "" if overload == "default" else f".{overload}"
        if name not in _FILE_OPERATORS and f"{namespace}::{name}{suffix}" in _registered_operators():
            return target
        if namespace != "aten" or name not in _FILE_OPERATORS:
            raise Rejected(f"the operator {target!r} does not exist in this version of torch")
    raise Rejected(f"the function {target!r} is not one of torch's tensor operators", code=True)
