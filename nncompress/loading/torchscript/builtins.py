"""What TorchScript computes on numbers, lists, dicts and text: the operators that no dispatcher knows.

Numbers may be symbolic sizes. Lists are those of the graph, changed in place where it changes them. A number
that a trace wrapped into a tensor (`prim::NumToTensor`) stays a number here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nncompress import dtypes

SCALAR_TYPES = tuple(getattr(torch, name) for name in dtypes.SCALAR_TYPES)
MEMORY_FORMATS = (
    *(torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d),
)


def whole(value: Any) -> Any:
    """As `int(value)` of TorchScript: towards zero; symbolic sizes stay symbolic."""
    if isinstance(value, Tensor):
        value = value.item()
    return torch.sym_int(value)


def real(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item()
    return torch.sym_float(value) if isinstance(value, torch.SymInt | torch.SymFloat) else float(value)


def truth(value: Any) -> bool:
    return bool(value)


def _rounded(up: bool) -> Callable[[Any], Any]:
    return lambda value: math.ceil(value) if up else math.floor(value)


def _divided(a: Any, b: Any, mode: Any = None) -> Any:
    if mode == "floor":
        return a // b
    return torch.sym_int(a / b) if mode == "trunc" else a / b


def _slice(items: Any, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    return items[start:end:step]


def _set(items: Any, key: Any, value: Any) -> Any:
    items[key] = value
    return items


def _changed(method: str) -> Callable[..., Any]:
    """A method that changes a list or dict, which is the result."""

    def change(items: Any, *arguments: Any) -> Any:
        getattr(items, method)(*arguments)
        return items

    return change


def _most(pick: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: pick(*values)


def _tensor(value: Any, dtype: Any = None, *rest: Any) -> Tensor:
    kind = dtype if isinstance(dtype, torch.dtype) or dtype is None else SCALAR_TYPES[dtype]
    if isinstance(value, torch.SymInt | torch.SymFloat):
        symbolic: Any = value  # which its stubs do not know
        return torch.scalar_tensor(symbolic, dtype=kind or (torch.int64 if value.node.is_int() else None))
    return torch.tensor(value, dtype=kind)


def _to(tensor: Tensor, *settings: Any) -> Tensor:
    """Forms that no dispatcher knows: to a device, which is the CPU, or a type."""
    kind = next((each for each in settings[:2] if type(each) is int), None)
    return tensor if kind is None else tensor.to(SCALAR_TYPES[kind])


def _infer_size(a: list[Any], b: list[Any]) -> list[Any]:
    return list(torch.broadcast_shapes(tuple(a), tuple(b)))


BUILTINS: dict[str, Callable[..., Any]] = {
    "aten::add": lambda a, b, alpha=1: a + alpha * b if not isinstance(a, list) else a + b,
    "aten::sub": lambda a, b, alpha=1: a - alpha * b,
    "aten::rsub": lambda a, b, alpha=1: b - alpha * a,
    "aten::mul": operator.mul,
    "aten::div": _divided,
    "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv,
    "aten::__round_to_zero_floordiv": lambda a, b: torch.sym_int(a / b),
    "aten::remainder": operator.mod,
    "aten::fmod": math.fmod,
    "aten::pow": operator.pow,
    "aten::neg": operator.neg,
    "aten::abs": abs,
    "prim::abs": abs,
    "aten::floor": _rounded(False),
    "aten::ceil": _rounded(True),
    "aten::round": round,
    "aten::sqrt": torch.sym_sqrt,
    "aten::log": math.log,
    "aten::log2": math.log2,
    "aten::log10": math.log10,
    "aten::exp": math.exp,
    "aten::gcd": math.gcd,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::__xor__": operator.xor,
    "aten::__lshift__": operator.lshift,
    "aten::__rshift__": operator.rshift,
    "aten::__not__": operator.not_,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__contains__": lambda items, value: value in items,
    "aten::__getitem__": operator.getitem,
    "aten::_set_item": _set,
    "aten::slice": _slice,
    "aten::len": len,
    "aten::append": _changed("append"),
    "aten::extend": _changed("extend"),
    "aten::insert": _changed("insert"),
    "aten::reverse": _changed("reverse"),
    "aten::clear": _changed("clear"),
    "aten::update": _changed("update"),
    "aten::Delete": _changed("__delitem__"),
    "aten::pop": lambda items, *position: items.pop(*position),
    "aten::copy": lambda items: items.copy(),
    "aten::list": list,
    "aten::dict": dict,
    "aten::keys": lambda items: list(items.keys()),
    "aten::values": lambda items: list(items.values()),
    "aten::items": lambda items: list(items.items()),
    "aten::get": lambda items, key, default=None: items.get(key, default),
    "aten::index": lambda items, value: items.index(value),
    "aten::count": lambda items, value: items.count(value),
    "aten::sorted": sorted,
    "aten::any": any,
    "aten::all": all,
    "aten::sum": sum,
    "aten::Int": whole,
    "aten::IntImplicit": whole,
    "aten::Float": real,
    "aten::FloatImplicit": real,
    "aten::ScalarImplicit": lambda value: value.item() if isinstance(value, Tensor) else value,
    "aten::item": lambda value: value.item() if isinstance(value, Tensor) else value,
    "aten::Bool": truth,
    "aten::to": _to,
    "aten::tensor": _tensor,
    "aten::as_tensor": _tensor,
    "aten::detach": lambda value: value,
    "aten::format": lambda text, *values: text.format(*values),
    "aten::percentFormat": lambda text, *values: text % values,
    "aten::str": str,
    "aten::lower": lambda text: text.lower(),
    "aten::upper": lambda text: text.upper(),
    "aten::startswith": lambda text, start, *limits: text.startswith(start, *limits),
    "aten::endswith": lambda text, end, *limits: text.endswith(end, *limits),
    "aten::join": lambda text, parts: text.join(parts),
    "aten::__derive_index": lambda index, start, step: start + index * step,
    "aten::__range_length": lambda low, high, step: len(range(low, high, step)),
    "aten::_infer_size": _infer_size,
    "aten::broadcast_shapes": lambda *shapes: list(torch.broadcast_shapes(*map(tuple, shapes))),
    "aten::_unwrap_optional": lambda value: value,
    "aten::warn": lambda *arguments: None,
    "aten::is_grad_enabled": lambda: True,  # else transformers take fused forms, in which nothing is edited
    "aten::is_autocast_enabled": lambda *arguments: False,
    "aten::is_autocast_cpu_enabled": lambda: False,
    "aten::is_scripting": lambda: True,
    "aten::has_torch_function": lambda *arguments: False,
    "aten::_get_tracing_state": lambda: False,
    "prim::NumToTensor": lambda value: value,
    "prim::unchecked_cast": lambda value: value,
    "prim::unchecked_unwrap_optional": lambda value: value,
    "prim::type": lambda device: device.type,
    "prim::min": _most(min),
    "prim::max": _most(max),
    "prim::rangelist": lambda count: list(range(count)),
    "prim::TupleIndex": operator.getitem,
    "prim::Uninitialized": lambda: None,
}

# These read a tensor and give no tensor.
OF_TENSORS: dict[str, Callable[..., Any]] = {
    "aten::size": lambda tensor, dim=None: list(tensor.shape) if dim is None else tensor.shape[dim],
    "aten::sym_size": lambda tensor, dim=None: list(tensor.shape) if dim is None else tensor.shape[dim],
    "prim::shape": lambda tensor: list(tensor.shape),
    "aten::stride": lambda tensor, dim=None: list(tensor.stride()) if dim is None else tensor.stride(dim),
    "aten::dim": lambda tensor: tensor.dim(),
    "aten::numel": lambda tensor: tensor.numel(),
    "aten::len": len,
    "aten::is_floating_point": lambda tensor: tensor.is_floating_point(),
    "aten::is_complex": lambda tensor: tensor.is_complex(),
    "aten::is_contiguous": lambda tensor, *form: tensor.is_contiguous(),
    "aten::cpu": lambda tensor: tensor,
    "prim::device": lambda tensor: tensor.device,
    "prim::dtype": lambda tensor: SCALAR_TYPES.index(tensor.dtype),
    "prim::layout": lambda tensor: 0,
    "prim::requires_grad": lambda tensor: True,
    "aten::requires_grad_": lambda tensor, *value: tensor,
    "prim::data": lambda tensor: tensor.detach(),
    "prim::is_nested": lambda tensor: False,
    "prim::is_quantized": lambda tensor: False,
    "prim::is_sparse": lambda tensor: False,
    "prim::is_meta": lambda tensor: False,
    "prim::is_cuda": lambda tensor: False,
    "prim::is_cpu": lambda tensor: True,
    "prim::is_mkldnn": lambda tensor: False,
    "prim::is_xpu": lambda tensor: False,
    "aten::mT": lambda tensor: tensor.mT,
    "aten::numpy_T": lambda tensor: tensor.permute(*reversed(range(tensor.dim()))),
}
