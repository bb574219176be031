"""Tensors of few distinct values, stored as what they are: a codebook and indices of 1, 2, 4 or 8 bits.

Passes see float tensors, always. `pack` is what an exporter calls: it replaces each tensor that has at most
256 distinct values by standard ops that look it up, exactly, and `unpack` undoes that after loading. With
1, 2 or 4 bits a byte holds 8, 4 or 2 indices; no bits are shifted, a byte is looked up in the table of all
256 groups of values instead, which itself is made of the codebook:

    table  = codebook[digits]           [256, per byte]    `digits` is one constant for the whole model
    weight = table[bytes].flatten()[:n].reshape(shape)

ONNX Runtime computes this once, when a session is made (constant folding): a call costs what it cost before.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.edit import add_tensor, inserting_before, read_tensor
from nncompress.ir.model import Model
from nncompress.ir.normalize import op_name, remove_dead_code

aten = torch.ops.aten

MOST = 256  # distinct values that an index of 8 bits tells apart
SAMPLE = 4096  # values looked at before a whole tensor is sorted
OVERHEAD = 1024  # bytes that the ops of one lookup take in a file, about
CODES, BOOK, DIGITS = "_codes", "_codebook", "codebook_digits"


def bits_for(distinct: int) -> int:
    """The width of the index: 1, 2, 4 or 8."""
    return next(width for width in (1, 2, 4, 8) if distinct <= 2**width)


def distinct_values(tensor: Tensor) -> Tensor | None:
    """The values of a float tensor, sorted, or None where there are more than 256 (or one is NaN)."""
    if not tensor.dtype.is_floating_point or not tensor.numel():
        return None
    flat = tensor.detach().flatten()
    step = max(1, len(flat) // SAMPLE)
    if len(flat) > SAMPLE and len(torch.unique(flat[::step])) > MOST:
        return None
    values = torch.unique(flat)
    return values if len(values) <= MOST and not bool(values.isnan().any()) else None


def packed_bytes(tensor: Tensor, distinct: int) -> int:
    """Stored bytes of the indices and the codebook."""
    return -(-tensor.numel() * bits_for(distinct) // 8) + distinct * tensor.element_size()


def pack(model: Model) -> Model:
    """A copy in which every tensor that is smaller as codebook and indices is stored so; `model` if none is.

    Its outputs are the same, bit for bit.
    """
    found = {}
    for node in model.graph.nodes:
        if node.op != "get_attr" or str(node.target) in found or op_name_of_readers(node) & {"dequantize"}:
            continue
        tensor = model.tensor(str(node.target))
        values = distinct_values(tensor) if isinstance(tensor, torch.nn.Parameter) else None
        if values is None:
            continue
        size = tensor.numel() * tensor.element_size()
        if packed_bytes(tensor, len(values)) + OVERHEAD < size:
            found[str(node.target)] = values
    if not found:
        return model
    small = model.copy()
    for name, values in found.items():
        _pack_tensor(small, name, values)
    remove_dead_code(small.graph_module)
    return small


def op_name_of_readers(node: fx.Node) -> set[str]:
    """The ops that read a node, without what follows the first underscore."""
    return {op_name(user).split("_")[0] for user in node.users}


def _pack_tensor(model: Model, name: str, values: Tensor) -> None:
    tensor = model.tensor(name).detach()
    readers = [n for n in model.graph.nodes if n.op == "get_attr" and n.target == name]
    codes = torch.searchsorted(values, tensor.flatten().contiguous())
    width = bits_for(len(values))
    group = 8 // width
    book = torch.zeros(2**width, dtype=tensor.dtype)
    book[: len(values)] = values
    filled = torch.cat([codes, codes.new_zeros(-len(codes) % group)]).reshape(-1, group)
    weights = 2 ** (width * torch.arange(group))
    stored = (filled * weights).sum(1).to(torch.uint8)
    code_name = add_tensor(model, name + CODES, stored, trainable=False)
    book_name = add_tensor(model, name + BOOK, book.unsqueeze(1), trainable=False)
    first = readers[0]
    table = read_tensor(model, book_name, first)
    read_codes = read_tensor(model, code_name, first)
    with inserting_before(first) as call:
        if group > 1:
            digits = read_tensor(model, _digits(model, width), first)
            whole = call(aten.to.dtype, digits, torch.int64)
            table = call(aten.reshape.default, call(aten.embedding.default, table, whole), [256, group])
        index = call(aten.to.dtype, read_codes, torch.int64)
        value = call(aten.reshape.default, call(aten.embedding.default, table, index), [-1])
        if len(stored) * group != tensor.numel():
            value = call(aten.slice.Tensor, value, 0, 0, tensor.numel())
        value = call(aten.reshape.default, value, list(tensor.shape))
    for reader in readers:
        reader.replace_all_uses_with(value)


def _digits(model: Model, width: int) -> str:
    """The name of the constant [256, 8 / width]: which indices each byte holds, lowest bits first."""
    name = f"{DIGITS}_{width}"
    if not hasattr(model.graph_module, name):
        places = width * torch.arange(8 // width)
        digits = (torch.arange(256)[:, None] >> places) & (2**width - 1)
        add_tensor(model, name, digits.to(torch.uint8), trainable=False)
    return name


def unpack(model: Model) -> None:
    """Turn every lookup that `pack` made back into a stored tensor under its own name, in place."""
    for codes in [n for n in model.graph.nodes if n.op == "get_attr" and str(n.target).endswith(CODES)]:
        name = str(codes.target).removesuffix(CODES)
        if not _exists(model, name + BOOK):
            continue
        book = model.tensor(name + BOOK).flatten()
        last = _last_of_chain(codes)
        shape: Any = last.args[1]
        width = bits_for(len(book))
        places = width * torch.arange(8 // width)
        indices = (model.tensor(str(codes.target)).to(torch.int64)[:, None] >> places) & (2**width - 1)
        value = book[indices.flatten()[: prod(shape)]].reshape(shape)
        made = add_tensor(model, name, value)
        last.replace_all_uses_with(read_tensor(model, made, last))
    remove_dead_code(model.graph_module)


def _exists(model: Model, name: str) -> bool:
    try:
        model.tensor(name)
    except AttributeError:
        return False
    return True


def _last_of_chain(codes: fx.Node) -> fx.Node:
    """The final reshape: codes -> to -> embedding -> reshape [-> slice] -> reshape."""
    node = codes
    for wanted in ("to", "embedding", "reshape", "slice", "reshape"):
        following = [u for u in node.users if op_name(u) == wanted]
        if following:
            node = following[0]
        elif wanted != "slice":
            raise ValueError(f"{codes.target} is not read as a codebook is")
    return node
