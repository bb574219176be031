"""A model whose packed tensors (`nncompress.ir.formats.packed`) are computed by its graph, with standard ops.

Passes see float tensors, always. `pack` is what an exporter calls, and `unpack` undoes it after loading:

    bytes -> indices     digits[bytes].flatten()[:n]     `digits` [256, 8 / bits]: one constant per width
    weight               codebook[indices + offsets].reshape(shape)
    behind a bitmap      values[cumsum(bits) · bits].reshape(shape)

No bits are shifted. ONNX Runtime computes all this once, when a session is made (constant folding): a call
costs what it cost before. (It does not fold `NonZero`, hence the running sum.)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.edit.nodes import add_tensor, inserting_before, names_of, read_tensor, tie_tensors
from nncompress.ir.formats.packed import PARTS, Parts, bits_for, restore, smallest
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.normal_form.normalize import remove_dead_code
from nncompress.ir.graph.ops import op_name

aten = torch.ops.aten

DIGITS = "packed_digits"
TABLES = ("codebook", "codebook16", "values")  # what is looked up in


def pack(model: Model, per_op: int = 0, leave: Collection[str] = ()) -> Model:
    """A copy in which every weight that is smaller packed is stored so; `model` itself if none is.

    So is the int8 weight of a quantized layer: 4 bits where it has 16 values, a bitmap where most are zero.

    Its outputs are the same, bit for bit. A tensor that several layers share is stored once.

    Args:
        per_op: bytes that an op takes in the file that is to be written; a lookup has 3 to 14.
        leave: tensors that the file has another form for.
    """
    found: dict[str, Parts] = {}
    seen: set[int] = set()
    for node in model.graph.nodes:
        if node.op != "get_attr":
            continue
        tensor = model.tensor(str(node.target))
        stored = isinstance(tensor, torch.nn.Parameter) or tensor.dtype == torch.int8
        if (
            id(tensor) in seen or not stored or tensor.dim() < 2 or node.target in leave
        ):  # integer kernels want to see their biases
            continue
        seen.add(id(tensor))
        parts = smallest(tensor, per_op=per_op)
        if parts is not None:
            found[str(node.target)] = parts
    if not found:
        return model
    small = model.copy()
    for name, parts in found.items():
        _Lookup(small, name, parts).insert()
    remove_dead_code(small.graph_module)
    return small


class _Lookup:
    """The ops that compute one tensor, placed before its first reader."""

    def __init__(self, model: Model, name: str, parts: Parts) -> None:
        self.model, self.name, self.parts = model, name, parts
        self.tensor = model.tensor(name)
        self.aliases = names_of(model, self.tensor)
        self.readers = [n for n in model.graph.nodes if n.op == "get_attr" and n.target in self.aliases]
        self.first = self.readers[0]

    def insert(self) -> None:
        parts, count = self.parts, self.tensor.numel()
        bits: fx.Node | None = None
        if "bitmap" in parts:
            bits = self._indices("bitmap", 1, count)
            count = 1 + int(torch.count_nonzero(self.tensor))
        if "codes" in parts:
            book = "codebook16" if "codebook16" in parts else "codebook"
            channels = parts["offsets"].numel() if "offsets" in parts else 1
            index = self._indices("codes", bits_for(len(parts[book]) // channels), count)
            table = self._read(book, column=True)
            with inserting_before(self.first) as call:
                if book == "codebook16":
                    table = call(aten.to.dtype, table, torch.float32)
                if "offsets" in parts:
                    index = call(aten.reshape.default, index, list(self.tensor.shape))
                    index = call(aten.add.Tensor, index, self._read("offsets"))
                value = call(aten.embedding.default, table, index)
        else:
            value = self._read("values", column=True)
        with inserting_before(self.first) as call:
            if bits is not None:
                counted = call(aten.cumsum.default, bits, 0, dtype=torch.int32)
                value = call(aten.embedding.default, value, call(aten.mul.Tensor, counted, bits))
            value = call(aten.reshape.default, value, list(self.tensor.shape))
        for reader in self.readers:
            reader.replace_all_uses_with(value)

    def _read(self, part: str, *, column: bool = False) -> fx.Node:
        """A node that reads a stored part; a column for the tables that are looked up in.

        It bears all names of a tied tensor, so that all of them come back.
        """
        value = self.parts[part].unsqueeze(1) if column else self.parts[part]
        name = add_tensor(self.model, f"{self.name}_{part}", value, trainable=False)
        for alias in self.aliases:
            if alias != self.name:
                tied = add_tensor(self.model, f"{alias}_{part}", value, trainable=False)
                tie_tensors(self.model, [name, tied])
        return read_tensor(self.model, name, self.first)

    def _indices(self, part: str, width: int, count: int) -> fx.Node:
        """int32 [count] from bytes that hold 8 / width indices each."""
        stored = self._read(part)
        digits = None if width == 8 else read_tensor(self.model, _digits(self.model, width), self.first)
        with inserting_before(self.first) as call:
            index = call(aten.to.dtype, stored, torch.int32)
            if digits is None:
                return index
            index = call(aten.reshape.default, call(aten.embedding.default, digits, index), [-1])
            if count % (8 // width):
                index = call(aten.slice.Tensor, index, 0, 0, count)
            return call(aten.to.dtype, index, torch.int32)


def _digits(model: Model, width: int) -> str:
    """The name of the constant [256, 8 / width]: which indices each byte holds, lowest bits first."""
    name = f"{DIGITS}_{width}"
    if not hasattr(model.graph_module, name):
        digits = (torch.arange(256)[:, None] >> torch.arange(0, 8, width)) & (2**width - 1)
        add_tensor(model, name, digits.to(torch.uint8), trainable=False)
    return name


def unpack(model: Model) -> None:
    """Turn every lookup that `pack` made back into a stored tensor under its own name, in place.

    Raises:
        ValueError: something is named like a lookup and is none.
    """
    for node in list(model.graph.nodes):
        name, _, part = str(node.target).rpartition("_")
        if node.op != "get_attr" or part not in TABLES or not name or not node.users:
            continue
        parts = {p: t for p in PARTS if (t := _stored(model, f"{name}_{p}")) is not None}
        if not parts.keys() & {"bitmap", "codes"}:
            continue  # the model's own, called so by chance
        last = _last(node)
        shape: Any = last.args[1]
        made = add_tensor(model, name, restore(parts, tuple(shape)))
        read = read_tensor(model, made, last)
        if "val" in last.meta:  # passes ask every node for its shape
            read.meta["val"] = last.meta["val"]
        last.replace_all_uses_with(read)
        for alias in _aliases(model, str(node.target)):
            tied = add_tensor(model, alias.removesuffix(f"_{part}"), model.tensor(made))
            tie_tensors(model, [made, tied])
    remove_dead_code(model.graph_module)


def _aliases(model: Model, name: str) -> list[str]:
    """Other names of a buffer; loading a file separates the objects, which still share their memory."""
    memory = model.tensor(name).data_ptr()
    same = [n for n, b in model.graph_module.named_buffers(remove_duplicate=False) if b.data_ptr() == memory]
    return [n for n in same if n != name and n.endswith(name[name.rindex("_") :])]


def _stored(model: Model, name: str) -> Tensor | None:
    try:
        return model.tensor(name)
    except AttributeError:
        return None


def _last(table: fx.Node) -> fx.Node:
    """The reshape that ends a lookup: codebook [-> to] -> embedding [-> embedding] -> reshape."""
    node = table
    while True:
        node = next(iter(node.users))
        if op_name(node) in ("reshape", "view"):
            return node
        if op_name(node) not in ("embedding", "to"):
            raise ValueError(f"{table.target} is not read as a packed tensor is")
