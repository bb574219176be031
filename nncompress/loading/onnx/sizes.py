"""Inputs of an ONNX file as it states them, and numbers for the sizes that it leaves free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from nncompress.dtypes import dtype_name
from nncompress.errors import DataError, ModelFileError, UnsupportedError, UsageError
from nncompress.ir import InputSpec
from nncompress.ir.graph.inputs import is_dim_name, random_input
from nncompress.ir.graph.stated_input import InputShape, matched
from nncompress.loading.onnx.values import DTYPES
from nncompress.runtimes import Runner
from nncompress.runtimes.free_sizes import BATCH, free_dims, usual_sizes
from nncompress.runtimes.named_dims import usual_batch

MOST_VALUES = 2**40  # of one input
_NO_KERNEL = ("NOT_IMPLEMENTED", "does not support")  # in what ONNX Runtime says where no size is to blame


@dataclass(frozen=True)
class Input:
    """One input as the file states it; a str in `shape` names a free dim, equal names are equal sizes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


def input_of(value: onnx.ValueInfoProto, path: Path) -> Input:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
        raise UnsupportedError(f"{path}: the input {value.name} is no tensor of numbers")
    if not kind.HasField("shape"):
        raise UnsupportedError(
            f"{path}: the input {value.name} has no shape, not even a number of dims",
            remedy="replace it by one that has: "
            "graph.input[i].CopyFrom(onnx.helper.make_tensor_value_info(name, type, ['batch', 3, 224, 224]))",
        )
    shape: list[int | str] = []
    for axis, dim in enumerate(kind.shape.dim):
        named = dim.dim_param if is_dim_name(dim.dim_param) else f"{value.name}_{axis}"  # "?" is no name
        shape.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else named)
    values = math.prod(size for size in shape if isinstance(size, int))
    if values > MOST_VALUES:
        raise ModelFileError(
            f"{path}: the input {value.name} is larger than any memory",
            got=f"{' x '.join(map(str, shape))}"[:200],
        )
    return Input(value.name, DTYPES[kind.elem_type], tuple(shape))


def choose_sizes(
    inputs: list[Input],
    runner: Runner,
    given: Sequence[InputShape] | None,
    path: Path,
    remembered: Mapping[str, int],
) -> dict[str, int]:
    """A number for every free dim, with which ONNX Runtime runs the file.

    Args:
        remembered: what the file says of them, if nncompress wrote it.
    """
    if given is not None:
        return _stated(inputs, given, path)
    failure = ""
    for chosen in usual_sizes([each.shape for each in inputs], batch_dim(inputs), remembered):
        try:
            runner.run(*examples(inputs, chosen, seed=0))
        except DataError as error:
            failure = str(error.got)
            continue
        return chosen
    if any(word in failure for word in _NO_KERNEL):
        raise UnsupportedError(
            f"ONNX Runtime does not run {path} at any size",
            got=failure,
            remedy="a file in float32 or of other operators; to compress it, load the model it came from",
        )
    shapes = ", ".join(f"{each.name} [{', '.join(map(str, each.shape))}]" for each in inputs)
    free = ", ".join(free_dims([each.shape for each in inputs]))
    raise UsageError(
        f"{path} leaves sizes free, and none of the usual ones runs",
        got=f"{shapes}; {failure}",
        remedy=f"state them, a number in the place of {free}: --input "
        + ",".join("x".join(map(str, each.shape)) or f"{each.name}=NUMBER" for each in inputs),
    )


def _stated(inputs: list[Input], given: Sequence[InputShape], path: Path) -> dict[str, int]:
    given = matched(given, [each.name for each in inputs])
    sizes: dict[str, int] = {}
    batches = {batch_dim(inputs)}
    for each, stated in zip(inputs, given):
        if stated.batch_dim is not None and stated.batch_dim < len(each.shape):
            batches.add(str(each.shape[stated.batch_dim]))
        fits = len(stated.shape) == len(each.shape)
        for d, (dim, size) in enumerate(zip(each.shape, stated.shape)):
            if d == stated.batch_dim and isinstance(dim, int):
                continue  # a batch of a fixed size
            fits &= size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
        if not fits:
            raise UsageError(
                f"--input does not fit {path}",
                got=str(stated),
                expected=f"{each.name} [{', '.join(map(str, each.shape))}]",
            )
    # of a batch torch.export would take 1 for a constant
    return {dim: BATCH if dim in batches and size == 1 else size for dim, size in sizes.items()}


def batch_dim(inputs: list[Input]) -> str | None:
    """The free dim with a usual name of the batch; else that of the first dim, where all inputs share it."""
    usual = usual_batch(free_dims([each.shape for each in inputs]))
    if usual is not None:
        return usual
    first = {each.shape[0] if each.shape else None for each in inputs}
    (only,) = first if len(first) == 1 else (None,)
    return only if isinstance(only, str) else None


def examples(inputs: list[Input], sizes: dict[str, int], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    specs = [InputSpec("x", dtype_name(each.dtype), each.shape) for each in inputs]
    return tuple(
        random_input(spec, tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape), generator)
        for spec in specs
    )
