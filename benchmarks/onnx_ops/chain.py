"""A chain of ONNX ops and what torch computes in its place; `OPS` has the ops by name."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Generator, Tensor, randn


@dataclass
class Chain:
    """An ONNX graph in the making; `value` is the name of the last result, `x` what torch has there."""

    x: Tensor
    value: str = "x"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[TensorProto] = field(default_factory=list)

    def constant(self, content: Any, dtype: Any = None) -> str:
        array = content.numpy() if isinstance(content, Tensor) else np.asarray(content)
        array = array.astype(dtype) if dtype is not None else array
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def floats(self, content: Any) -> str:
        return self.constant(content, str(self.x.dtype).removeprefix("torch."))

    def ints(self, *content: int) -> str:
        return self.constant(content, np.int64)

    def weight(self, *shape: int, salt: str = "") -> Tensor:
        generator = Generator().manual_seed(zlib.crc32(f"{shape}{salt}".encode()))
        return randn(shape, generator=generator).to(self.x.dtype) / math.sqrt(max(1, math.prod(shape[1:])))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes)
        )
        return name

    def then(self, result: Tensor, op: str, *inputs: str, **attributes: Any) -> None:
        """`op` of the value so far and `inputs`, which torch says is `result`."""
        self.value, self.x = self.add(op, self.value, *inputs, **attributes), result

    def model(self, shape: tuple[int, ...], dtype: str) -> bytes:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        result = helper.np_dtype_to_tensor_dtype(np.dtype(str(self.x.dtype).removeprefix("torch.")))
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", kind, list(shape))],
            [helper.make_tensor_value_info(self.value, result, None)],
            self.stored,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        ).SerializeToString()


Op = Callable[[Chain], None]
OPS: dict[str, Op] = {}


def op(name: str) -> Callable[[Op], Op]:
    def keep(build: Op) -> Op:
        OPS[name] = build
        return build

    return keep


def unary(name: str, onnx_op: str, function: Callable[[Tensor], Tensor], **attributes: Any) -> None:
    OPS[name] = lambda c: c.then(function(c.x), onnx_op, **attributes)


def with_scalar(name: str, onnx_op: str, number: float, function: Callable[[Tensor, float], Tensor]) -> None:
    OPS[name] = lambda c: c.then(function(c.x, number), onnx_op, c.floats(number))


def gate(name: str, build: Callable[[Chain], tuple[str, Tensor]]) -> None:
    """x times something of x: what Gelu and QuickGelu fusions look for."""

    def gated(c: Chain) -> None:
        factor, value = build(c)
        c.value, c.x = c.add("Mul", c.value, factor), c.x * value

    OPS[name] = gated
