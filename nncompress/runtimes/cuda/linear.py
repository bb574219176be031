"""Linear layers on the GPU's faster kernels, where torch has them: int8, and 2:4 sparsity.

| weights                                   | kernel                                   | sizes: multiples |
|-------------------------------------------|------------------------------------------|------------------|
| int8, with activations of a static range  | `torch._int_mm` (cuBLASLt)               | 8                |
| float16 or bfloat16 that are 2:4: of four | `torch.sparse.to_sparse_semi_structured` | 16 (cuSPARSELt)  |
| neighbouring inputs at most two not zero  |                                          | 32×64 (CUTLASS)  |

Convolutions have neither kernel in torch. Sparse tensor cores (NVIDIA Ampere and later) skip the two zeros of
each four: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
    to_sparse_semi_structured,
)

from nncompress.ir import Model
from nncompress.ir.formats.qdq import is_dequantized
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import Layer, argument, layers, readers

INT8_ROWS = 32  # `_int_mm` wants more than 16
INT8_MULTIPLE = 8
KEPT, OF = 2, 4


@dataclass
class Swapped:
    """What was done: names of layers, and for those that were not swapped, why."""

    done: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def summary(self, kernels: str) -> str:
        """ "3 of 4 linear layers on 2:4 kernels; not: head (10 outputs, no multiple of 16)", or ""."""
        total = len(self.done) + len(self.left)
        if not total:
            return ""
        text = f"{len(self.done)} of {total} linear layers on {kernels} kernels"
        named = [f"{name} ({why})" for name, why in list(self.left.items())[:3]]
        return text + (f"; not: {', '.join(named)}{', …' if len(self.left) > 3 else ''}" if named else "")


# -- 2:4 ---------------------------------------------------------------------------------------------------


def use_semi_structured(model: Model) -> Swapped:
    """Replace 2:4 weights of linear layers, in place, by the sparse tensors that torch multiplies with."""
    swapped, graph = Swapped(), model.graph
    linear = [layer for layer in layers(model) if layer.kind == "linear"]
    fitting: list[Layer] = []
    for layer in linear:
        why = why_not_semi_structured(layer, _smallest(layer.weight.value().dtype))
        if why:
            swapped.left[layer.name] = why
        else:
            fitting.append(layer)
    for name in dict.fromkeys(layer.weight.name for layer in fitting):
        sparse = _converter()(model.tensor(name).detach().contiguous())
        _set(model, name, nn.Parameter(sparse, requires_grad=False))
    for layer in fitting:
        with graph.inserting_before(layer.node):  # the sparse product views its input as a matrix
            data = graph.call_function(torch.ops.aten.contiguous.default, (layer.data,))
        layer.node.update_arg(layer.roles.data, data)
        swapped.done.append(layer.name)
    model.graph_module.recompile()
    return swapped


def why_not_semi_structured(layer: Layer, smallest: tuple[int, int]) -> str:
    """What keeps a linear layer off the sparse kernels; "" where nothing does.

    Args:
        smallest: (outputs, inputs) must be multiples of these.
    """
    if layer.weight.quantized or layer.weight.value().dtype not in (torch.float16, torch.bfloat16):
        return "its weight is not of 16 bits"
    weight = layer.weight.value()
    for size, multiple, what in zip(weight.shape, smallest, ("outputs", "inputs")):
        if size % multiple:
            return f"{size} {what}, no multiple of {multiple}"
    users = [user for node in readers(layer.weight.model, layer.weight.name) for user in node.users]
    if any(op_name(user) != "linear" for user in users):
        return "its weight is read by more than linear layers"
    return "" if is_semi_structured(weight) else "its weight is not 2:4"


def is_semi_structured(weight: Tensor) -> bool:
    """At most two of every four neighbouring inputs of [outputs, inputs] are not zero."""
    if weight.dim() != 2 or weight.shape[1] % OF:
        return False
    return bool((weight.reshape(len(weight), -1, OF).count_nonzero(-1) <= KEPT).all())


def _converter() -> Callable[[Tensor], Tensor]:
    SparseSemiStructuredTensor._FORCE_CUTLASS = not torch.backends.cusparselt.is_available()
    return to_sparse_semi_structured


def _smallest(dtype: torch.dtype) -> tuple[int, int]:
    """(outputs, inputs) of the smallest block that the backend in use takes."""
    cusparselt = torch.backends.cusparselt.is_available()
    backend = SparseSemiStructuredTensorCUSPARSELT if cusparselt else SparseSemiStructuredTensorCUTLASS
    constraint = backend._DTYPE_SHAPE_CONSTRAINTS.get(dtype)
    return (1, 1) if constraint is None else (constraint.sparse_min_rows, constraint.sparse_min_cols)


def _set(model: Model, name: str, parameter: nn.Parameter) -> None:
    prefix, _, leaf = name.rpartition(".")
    setattr(model.graph_module.get_submodule(prefix), leaf, parameter)


# -- int8 --------------------------------------------------------------------------------------------------


def use_int8(model: Model) -> Swapped:
    """Replace `dequantize, linear` of int8 values, in place, by a product of integers."""
    swapped, graph = Swapped(), model.graph
    for layer in layers(model):
        if layer.kind != "linear" or not layer.weight.quantized:
            continue
        why = _why_not_int8(layer)
        if why:
            swapped.left[layer.name] = why
            continue
        values: Any = layer.data
        stored, scales, *_ = layer.weight.source.args
        weight, steps = model.tensor(layer.weight.name), model.tensor(str(scales.target))  # type: ignore[union-attr]
        made = {
            "_int8_step": steps * float(values.args[1]),
            "_int8_shift": (128 - int(values.args[2])) * weight.sum(1, dtype=torch.int32),
        }
        arguments: list[Any] = [values.args[0], stored]
        with graph.inserting_before(layer.node):
            for name, value in made.items():
                model.graph_module.register_buffer(f"{name}_{len(swapped.done)}", value)
                arguments.append(graph.get_attr(f"{name}_{len(swapped.done)}"))
            product = graph.call_function(int8_linear, (*arguments, argument(layer.node, 2)))  # type: ignore[arg-type]
        product.meta = dict(layer.node.meta)
        layer.node.replace_all_uses_with(product)
        graph.erase_node(layer.node)
        swapped.done.append(layer.name)
    graph.eliminate_dead_code()
    model.graph_module.recompile()
    return swapped


def _why_not_int8(layer: Layer) -> str:
    source = layer.weight.source
    if not is_dequantized(layer.data):
        return "its input has no static range"
    if layer.data.args[5] != torch.uint8:
        return "its input is in signed bytes"
    if op_name(source) != "dequantize_per_channel" or source.args[3] != 0:
        return "its weight has no scale per output"
    if layer.weight.model.tensor(layer.weight.name).dtype != torch.int8:
        return "its weight is not stored as int8"
    for size, what in zip(layer.weight.model.tensor(layer.weight.name).shape, ("outputs", "inputs")):
        if size % INT8_MULTIPLE:
            return f"{size} {what}, no multiple of {INT8_MULTIPLE}"
    return ""


def int8_linear(x: Tensor, weight: Tensor, step: Tensor, shift: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of uint8 values with a zero point z, summed in 32-bit integers.

    Σ (x − z) w = Σ (x − 128) w + (128 − z) Σ w, where x − 128 is what an int8 kernel takes.

    Args:
        x: uint8 [..., inputs].
        weight: int8 [outputs, inputs].
        step: [outputs], the scale of x times that of each row of the weight.
        shift: int32 [outputs], (128 − z) Σ w.
    """
    rows = (x ^ 128).view(torch.int8).reshape(-1, x.shape[-1])
    count = rows.shape[0]
    if count < INT8_ROWS:
        rows = nn.functional.pad(rows, (0, 0, 0, INT8_ROWS - count))
    y = (torch._int_mm(rows, weight.t())[:count] + shift).to(step.dtype) * step
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], -1)
