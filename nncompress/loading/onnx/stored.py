"""What an ONNX file stores, initializers and constants, as parameters and buffers of a module."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from nncompress.loading.constants import is_weight

OWN = ("training", "arrays", "inputs")  # attributes of the module itself
MOST_HOST = 4096  # numbers: longer constants of integers are tables, not sizes


class Store(nn.Module):
    """What the file stores, initializers and constants: weights are parameters, other tensors buffers.

    Those of the graphs inside nodes, too, and all before anything is traced: a tensor that is made while
    tracing has no values.

    Attributes:
        arrays: by their names in the file.
        chosen: called with the name of an `If` of which both branches are computed.

    Args:
        fixed: names of what is stored and is no weight.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        folder: str,
        states: Collection[str] = (),
        chosen: Callable[[str], object] = str,
        fixed: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.chosen = chosen
        self._folder, self._states, self._fixed = folder, frozenset(states), frozenset(fixed)
        self.arrays: dict[str, np.ndarray] = {}
        self._owners: dict[str, tuple[nn.Module, str]] = {}
        self._taken: set[str] = set()
        self.keep(graph)

    def keep(self, graph: onnx.GraphProto) -> None:
        """Take in what `graph` and the graphs inside its nodes store. Of two branches, both may say "w"."""
        for tensor in graph.initializer:
            name = self._own_name(graph, tensor.name)
            self.arrays[name] = numpy_helper.to_array(tensor, self._folder)
            self._register(name)
        for node in graph.node:
            found = _constant(node)
            if found is not None:
                name = self._own_name(graph, node.output[0])
                self.arrays[name] = found
                if not is_host(found):
                    self._register(name)
            for inner in inner_graphs(node):
                self.keep(inner)

    def _own_name(self, graph: onnx.GraphProto, name: str) -> str:
        """`name`, or one that is free, which it then has in all of `graph`."""
        free = name
        while free in self.arrays:
            free += "_"
        if free != name:
            _rename(graph, name, free)
        return free

    def holds(self, name: str) -> bool:
        """It is a parameter or a buffer; small whole numbers of constants are not."""
        return name in self._owners

    def _register(self, name: str) -> None:
        array, state = self.arrays[name], name in self._states
        path = self._path(name.removesuffix("_in") if state else name)
        owner: nn.Module = self
        *parents, leaf = path.split(".")
        for part in parents:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        tensor = from_array(array)
        if is_weight(tensor) and not state and name not in self._fixed:
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=True))
        else:
            owner.register_buffer(leaf, tensor)
        self._owners[name] = (owner, leaf)

    @property
    def has_state(self) -> bool:
        """One call hands something to the next."""
        return bool(self._states)

    def constant(self, name: str) -> np.ndarray | None:
        """Its numbers, where these are the same in every call: those of a state are not."""
        return None if name in self._states else self.arrays.get(name)

    def tensor(self, name: str) -> Tensor:
        owner, leaf = self._owners[name]
        return getattr(owner, leaf)

    def _path(self, name: str) -> str:
        """A dotted name, no other's and no other's beginning: "layer1/conv:w" -> "layer1.conv_w"."""
        parts = [re.sub(r"\W", "_", part) or "_" for part in re.split(r"[./]+", name.strip("./")) if part]
        parts = [f"_{part}" if part[0].isdigit() and len(parts) == 1 else part for part in parts] or [
            "weight"
        ]
        path = ".".join(_free(part) for part in parts)
        while path in self._taken or any(
            path.startswith(f"{other}.") or other.startswith(f"{path}.") for other in self._taken
        ):
            path += "_"
        self._taken.add(path)
        return path


def _free(part: str) -> str:
    """A name that `nn.Module` has no attribute of, and torch's exporter gives to no value (`val_7`)."""
    taken = hasattr(Store, part) or part in OWN or re.fullmatch(r"val_\d+", part)
    return f"{part}_" if taken else part


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Branches and bodies."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def is_host(array: np.ndarray) -> bool:
    """Its numbers are computed with while tracing: sizes, axes, single floats."""
    return array.ndim == 0 or (array.size <= MOST_HOST and array.dtype.kind in "iub")


def _constant(node: onnx.NodeProto) -> np.ndarray | None:
    """What a Constant node holds; None of other nodes, and where it is no tensor of numbers."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        value = attribute_of(attribute)
        if attribute.name == "value":
            return value if value.dtype.kind in "iubf" or value.dtype.name == "bfloat16" else None
        if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
            return np.array(value, np.float32 if "float" in attribute.name else np.int64)
    return None


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """A value that `graph` itself defines, wherever it and the graphs inside its nodes read it."""
    for tensor in graph.initializer:
        tensor.name = new if tensor.name == old else tensor.name
    for value in graph.output:
        value.name = new if value.name == old else value.name
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new
        for inner in inner_graphs(node):
            _rename(inner, old, new)


def attribute_of(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.GraphProto | int | float | str):
        return value
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [each.decode("utf-8", "replace") for each in value]
    return list(value)


def from_array(array: np.ndarray) -> Tensor:
    if array.dtype.name in ("int4", "uint4"):  # torch has none of these
        return torch.from_numpy(array.astype("int8" if array.dtype.name == "int4" else "uint8"))
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, copy=True))
