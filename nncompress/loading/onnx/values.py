"""Values while an ONNX graph is walked: tensors, and arrays of numbers that are known when it is traced.

Sizes, axes and indices have to be numbers for the graph that comes out to be a plain one. They are kept as
numpy arrays, of symbolic integers where a dim is free (`dtype=object`), and computed with as numpy does. They
become tensors where they meet one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Value = Tensor | np.ndarray

DTYPES = {  # TensorProto.DataType -> torch
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}
HOST_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}


def is_symbolic(array: np.ndarray) -> bool:
    """It holds sizes that are not known yet."""
    return array.dtype == object and any(isinstance(x, torch.SymInt | torch.SymFloat) for x in array.flat)


def is_float(array: np.ndarray) -> bool:
    """Floats, or symbolic ones."""
    floats = float | np.floating | torch.SymFloat
    return array.dtype.kind == "f" or (
        array.dtype == object and any(isinstance(x, floats) for x in array.flat)
    )


def each(array: np.ndarray, function: Callable[[Any], Any]) -> np.ndarray:
    """`function` of every number, as an array of its shape."""
    result = np.empty(array.shape, dtype=object)
    for index, item in np.ndenumerate(array):
        result[index] = function(item)
    return result


def numbers(items: Sequence[Any] | Any) -> np.ndarray:
    """Integers, symbolic or not, as an array: int64 where all are known."""
    array = np.array(items, dtype=object)
    return array if is_symbolic(array) else array.astype(np.int64)


def simplified(array: np.ndarray) -> np.ndarray:
    """An object array all of whose items are plain, as one of integers, booleans or floats."""
    if array.dtype != object or is_symbolic(array):
        return array
    return np.array(array.tolist())


def as_tensor(value: Value, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of it; symbolic sizes are stacked."""
    if isinstance(value, Tensor):
        return value if dtype is None else value.to(dtype)
    if is_symbolic(value):
        kind = dtype or (torch.float32 if is_float(value) else torch.int64)
        flat = [torch.scalar_tensor(item, dtype=kind) for item in value.flat]
        return torch.stack(flat).reshape(value.shape)
    array = simplified(value)
    return torch.tensor(
        array.tolist(), dtype=dtype or torch.from_numpy(np.zeros(1, array.dtype)).dtype
    ).reshape(array.shape)


def scalar(value: Value) -> Any:
    """The one number of an array, symbolic or not."""
    assert isinstance(value, np.ndarray)
    item = value.reshape(-1)[0]
    return item.item() if isinstance(item, np.generic) else item


def items(value: np.ndarray) -> list[Any]:
    """Its numbers as Python's own, symbolic ones as they are."""
    return [x.item() if isinstance(x, np.generic) else x for x in value.reshape(-1)]
