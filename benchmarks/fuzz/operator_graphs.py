"""A `.pt2` with one operator in it, whose arguments no model has (see `operators.py`)."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from benchmarks.fuzz import hostile_values
from benchmarks.fuzz.hand_made_pt2 import DTYPES, Given, Item, archive, tensor_meta
from nncompress.ir.torch_logs import unlogged

_KINDS = ("user_input", "parameter", "buffer", "tensor_constant")
_STRINGS = ("sum", "mean", "reflect", "floor", "none", "ij", "linear", "bilinear", "", "x" * 2000)
_OTHER_DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.complex64)
_DTYPE_NUMBERS = (*range(1, 14), *range(28, 36))


class OperatorGraph:
    """The content of a `.pt2`, as it is made.

    Args:
        target: the name in the file: "torch.ops.aten.add.Tensor".
    """

    def __init__(self, target: str, operator: Any, random: Random) -> None:
        self.random, self.target, self.schema = random, target, operator._schema
        self.operator = operator
        self.usual = random.random() < 0.6  # all arguments but one
        ranks = [rank for dims, rank in (("1d", 3), ("2d", 4), ("3d", 5)) if dims in target]
        shapes = [
            shape for shape in hostile_values.SHAPES if len(shape) in ranks or not (ranks and self.usual)
        ]
        self.shape = random.choice(shapes)
        self.odd_one = random.randrange(len(self.schema.arguments) or 1)
        self.tensors: dict[str, Given] = {}  # by name in the graph
        self.values: dict[str, Item] = {}  # what the graph says of every tensor in it
        self.given: dict[str, Any] = {}  # arguments, as Python has them

    def content(self) -> bytes:
        """The archive."""
        arguments, by_position = [], True
        for position, argument in enumerate(self.schema.arguments):
            self.hostile = not self.usual or position == self.odd_one
            if argument.has_default_value() and self.random.random() < 0.5:
                by_position = False  # those after it need their names
            else:
                arguments.append(self._argument(argument, by_position and not argument.kwarg_only))
        outputs, made = self._outputs()
        if not self.tensors:
            self._tensor("x")
        node = {
            "target": self.target,
            "inputs": arguments,
            "outputs": outputs,
            "metadata": {},
            "is_hop_single_tensor_return": None,
            "name": "made",
        }
        inputs = [{"as_tensor": {"name": name}} for name in self.tensors]
        graph = {
            "inputs": inputs,
            "outputs": [{"as_tensor": {"name": name}} for name in made] or inputs[-1:],
            "nodes": [node],
            "tensor_values": self.values,
            "sym_int_values": {name: {"as_expr": _UNBACKED} for name in _names(outputs, "as_sym_int")},
            "sym_bool_values": {name: {"as_bool": True} for name in _names(outputs, "as_sym_bool")},
            "sym_float_values": {},
            "is_single_tensor_return": False,
            "custom_obj_values": {},
        }
        return archive(self.tensors, graph)

    # --- arguments ------------------------------------------------------------------------------------------

    def _argument(self, argument: Any, by_position: bool) -> Item:
        written, self.given[argument.name] = self._value(str(argument.real_type), argument.name)
        return {"name": argument.name, "arg": written, "kind": 1 if by_position else 2}

    def _value(self, kind: str, name: str) -> tuple[Item, Any]:
        """As the file says it, and as Python does."""
        random = self.random
        if kind.startswith("Optional["):
            kind = kind[9:-1]
            if random.random() < 0.4:
                return {"as_none": True}, None
        if self.hostile and random.random() < 0.05:  # a value of another type
            kind = random.choice(
                ["Tensor", "int", "float", "bool", "str", "List[int]", "List[Tensor]", "Device"]
            )
        if kind.startswith("List["):
            rank = len(self.shape)
            count = random.choice([1, 2, rank, max(rank - 2, 1)] + self.hostile * [0, random.randrange(5)])
            each = [self._value(kind[5:-1], name) for _ in range(count)]
            return {_PLURAL[kind[5:-1]]: [_inner(kind[5:-1], item) for item, _ in each]}, [v for _, v in each]
        match kind:
            case "Tensor":
                return self._tensor(name)
            case "ScalarType":
                number = random.choice(_DTYPE_NUMBERS)
                return {"as_scalar_type": number}, _BY_NUMBER[number]
            case "MemoryFormat":
                number = random.choice([1, 2, 3, 4])
                return {"as_memory_format": number}, _FORMATS[number]
            case "Layout":
                return {"as_layout": 7}, torch.strided
            case "Device":
                return {"as_device": {"type": "cpu", "index": None}}, torch.device("cpu")
            case "str":
                text = random.choice(_STRINGS)
                return {"as_string": text}, text
            case "Generator":
                return {"as_none": True}, None
        if self.hostile:
            value = hostile_values.value(kind, name, self.shape, random)
        else:
            value = hostile_values.usual_value(kind, name, len(self.shape), random)
        return {_SINGLE[type(value)]: _written(value)}, value

    def _tensor(self, name: str) -> tuple[Item, Tensor]:
        random, number = self.random, len(self.tensors)
        before = list(self.tensors)
        if before and random.random() < 0.1:  # the same tensor again
            own = random.choice(before)
            return {"as_tensor": {"name": own}}, self.tensors[own].tensor
        own, memory = f"t{number}", f"t{number}"
        if not self.hostile:
            tensor, chance = hostile_values.usual_tensor(name, len(self.shape), random), 1.0
        else:
            tensor, chance = hostile_values.tensor(name, self.shape, random), random.random()
        if chance < 0.05:
            tensor = tensor[:0] if tensor.dim() else tensor
        elif chance < 0.15:
            tensor = tensor.to(random.choice(_OTHER_DTYPES))
        elif chance < 0.25:
            tensor = _laid_out(tensor, random)
        elif chance < 0.3 and before:  # of the memory of another, in another layout
            weights = [name for name in before if self.tensors[name].kind in ("parameter", "buffer")]
            memory = self.tensors[random.choice(weights)].memory if weights else own
            tensor = _laid_out(self.tensors[memory].tensor if weights else tensor, random)
        kind = random.choice(_KINDS) if memory == own else "buffer"
        self.tensors[own] = Given(tensor, kind, memory)
        self.values[own] = tensor_meta(tensor)
        return {"as_tensor": {"name": own}}, tensor

    # --- results --------------------------------------------------------------------------------------------

    def _outputs(self) -> tuple[list[Item], list[str]]:
        """What the node returns, and the tensors among it: of the shapes that they have, or of others."""
        found = self._shapes()
        outputs: list[Item] = []
        names: list[str] = []
        for number, returned in enumerate(self.schema.returns):
            name = f"made{number}"
            result = found[number] if number < len(found) else None
            match str(returned.type):
                case "Tensor":
                    names.append(self._made(name, result))
                    outputs.append({"as_tensor": {"name": name}})
                case "List[Tensor]":
                    count = len(result) if isinstance(result, list | tuple) else self.random.randrange(1, 4)
                    each = [f"{name}_{i}" for i in range(min(count, 20))]
                    for position, one in enumerate(each):
                        self._made(one, result[position] if isinstance(result, list | tuple) else None)
                    names += each
                    outputs.append({"as_tensors": [{"name": one} for one in each]})
                case "bool":
                    outputs.append({"as_sym_bool": {"as_name": name}})
                case _:
                    outputs.append({"as_sym_int": {"as_name": name}})
        return outputs, names

    def _made(self, name: str, result: Any) -> str:
        shape = tuple(result.shape) if isinstance(result, Tensor) else self.shape
        dtype = result.dtype if isinstance(result, Tensor) else torch.float32
        if not all(isinstance(size, int) for size in shape) or self.random.random() < 0.05:
            shape = self.random.choice(hostile_values.SHAPES)
        self.values[name] = tensor_meta(torch.empty(0, dtype=dtype), shape)
        return name

    def _shapes(self) -> list[Any]:
        """What the operator's shape rule says; nothing where it refuses, or might make a million results."""
        if any(value.numel() > 1000 for value in pytree.tree_leaves(self.given) if isinstance(value, Tensor)):
            return []
        try:
            with unlogged(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
                given = pytree.tree_map_only(Tensor, mode.from_tensor, self.given)
                result = self.operator(**given)
        except Exception:  # which is what most deserve
            return []
        return list(result) if isinstance(result, tuple) else [result]


_UNBACKED = {"expr_str": "Symbol('u0', integer=True)", "hint": None}
_SINGLE = {bool: "as_bool", int: "as_int", float: "as_float"}
_PLURAL = {
    **dict.fromkeys(("int", "SymInt"), "as_ints"),
    "float": "as_floats", "number": "as_floats", "bool": "as_bools", "str": "as_strings",
    "Tensor": "as_tensors", "Optional[Tensor]": "as_optional_tensors",
}  # fmt: skip
_BY_NUMBER = {number: dtype for dtype, number in DTYPES.items()}
_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}


def _names(outputs: list[Item], tag: str) -> list[str]:
    return [output[tag]["as_name"] for output in outputs if tag in output]


def _written(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _inner(kind: str, item: Item) -> Any:
    """Inside a list, a value has no tag; an optional tensor keeps it."""
    if kind == "Optional[Tensor]":
        return item
    return next(iter(item.values()))


def _laid_out(tensor: Tensor, random: Random) -> Tensor:
    """In another layout: transposed, strides of 0, views that overlap, from the middle."""
    if tensor.dim() == 0 or tensor.numel() < 2:
        return tensor
    match random.randrange(5):
        case 0:
            return tensor.transpose(0, -1)
        case 1:
            return tensor[:1].expand(*tensor.shape)
        case 2:
            return tensor.as_strided((2, tensor.numel() - 1), (1, 1))
        case 3:
            return tensor.flatten()[1:]
    return tensor[..., ::2]
