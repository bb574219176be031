"""Ops that move, pick and repeat values, and those that make shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule, sizes
from nncompress.loading.onnx.values import (
    DTYPES,
    Value,
    as_tensor,
    is_symbolic,
    items,
    numbers,
    scalar,
    simplified,
)

MOST_FILLED = 4096  # numbers: constants of known shape up to here are computed with while tracing


_KINDS_OF_CONSTANT = (
    *("value", "value_float", "value_int", "value_floats", "value_ints"),
    *("value_string", "value_strings", "sparse_value"),
)


@rule("Constant")
def constant(call: Call) -> None:
    """It was stored before the walk."""
    if call.outputs[0] not in call.walk.store.arrays:
        raise call.refusal("a constant that is no tensor of numbers")
    for name in _KINDS_OF_CONSTANT:
        call.get(name)


@rule("Shape")
def shape(call: Call) -> Value:
    value = call.value(0)
    found = sizes(value) if isinstance(value, Tensor) else np.array(value.shape, np.int64)
    return found[slice(call.get("start"), call.get("end"))]


@rule("Size")
def size(call: Call) -> Value:
    value = call.value(0)
    found = sizes(value) if isinstance(value, Tensor) else np.array(value.shape, np.int64)
    return numbers(np.prod(found, dtype=object) if len(found) else 1)


@rule("Reshape")
def reshape(call: Call) -> Value:
    value, wanted = call.value(0), items(call.array(1, "the shape"))
    have = list(value.shape)
    if not call.get("allowzero", 0):
        wanted = [have[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(wanted)]
    if isinstance(value, np.ndarray):
        return value.reshape([int(n) for n in wanted])
    return torch.reshape(value, wanted)


@rule("Transpose")
def transpose(call: Call) -> Value:
    value = call.value(0)
    perm = call.get("perm") or list(reversed(range(value.ndim)))
    if isinstance(value, np.ndarray):
        return np.transpose(value, perm)
    return value.transpose(0, 1) if perm == [1, 0] else value.permute(perm)


@rule("Flatten")
def flatten(call: Call) -> Value:
    x = call.tensor(0)
    axis = call.get("axis", 1) % (x.dim() + 1) if call.get("axis", 1) >= 0 else call.get("axis") + x.dim()
    if axis == 1 and x.dim() > 1:
        return torch.flatten(x, 1)
    rows = 1
    for n in x.shape[:axis]:
        rows = rows * n
    return x.reshape(rows, -1)


@rule("Squeeze")
def squeeze(call: Call) -> Value:
    value = call.value(0)
    axes = call.axes(1, value.ndim)
    if isinstance(value, np.ndarray):
        return np.squeeze(value, None if axes is None else tuple(axes))
    if axes is None:
        axes = [i for i, n in enumerate(value.shape) if isinstance(n, int) and n == 1]
    for axis in sorted(axes, reverse=True):
        value = value.squeeze(axis)
    return value


@rule("Unsqueeze")
def unsqueeze(call: Call) -> Value:
    value, axes = call.value(0), call.axes(1)
    if axes is None:
        raise call.refusal("without axes")
    axes = sorted(axis % (value.ndim + len(axes)) for axis in axes)
    for axis in axes:
        value = np.expand_dims(value, axis) if isinstance(value, np.ndarray) else value.unsqueeze(axis)
    return value


@rule("Concat")
def concat(call: Call) -> Value:
    values, axis = call.values(), call.get("axis")
    if all(isinstance(v, np.ndarray) for v in values):
        return simplified(np.concatenate(values, axis))
    dtype = next(v.dtype for v in values if isinstance(v, Tensor))
    return torch.cat([as_tensor(v, dtype) for v in values], axis)


@rule("Split")
def split(call: Call) -> Any:
    value, axis = call.value(0), call.get("axis", 0)
    parts = call.get("split")
    if parts is None and call.has(1):
        parts = items(call.array(1, "the sizes"))
    count = call.get("num_outputs", len(call.outputs))
    if isinstance(value, np.ndarray) and all(isinstance(n, int) for n in parts or ()):
        ends = np.cumsum(parts)[:-1] if parts is not None else count
        return list(np.split(value, ends, axis))
    value = as_tensor(value)
    if parts is None:
        whole = value.shape[axis]
        each = -(-whole // count)
        return list(torch.split(value, each, axis))
    return list(torch.split(value, parts, axis))


@rule("Slice")
def slice_(call: Call) -> Value:
    value = call.value(0)
    if call.opset < 10:
        starts, ends = call.get("starts"), call.get("ends")
        axes, steps = call.get("axes") or list(range(len(starts))), [1] * len(starts)
    else:
        starts, ends = items(call.array(1, "where it starts")), items(call.array(2, "where it ends"))
        axes = items(call.array(3)) if call.has(3) else list(range(len(starts)))
        steps = items(call.array(4, "its step")) if call.has(4) else [1] * len(starts)
    if not all(isinstance(n, int) for n in (*starts, *ends, *steps)):
        value = as_tensor(value)  # numpy would take a free size for the number that it has in the example
    for start, end, axis, step in zip(starts, ends, axes, steps):
        axis %= value.ndim
        if isinstance(value, np.ndarray):
            stop = None if step < 0 and end <= -value.shape[axis] - 1 else end
            value = value[(slice(None),) * axis + (slice(start, stop, step),)]
        elif step > 0:
            if start == 0 and isinstance(end, int) and end >= 2**31 - 1 and step == 1:
                continue
            value = torch.ops.aten.slice.Tensor(value, axis, start, end, step)
        else:
            value = _backwards(call, value, axis, start, end, -step)
    return value


def _backwards(call: Call, value: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    whole = value.shape[axis]
    if not (start == -1 or (isinstance(start, int) and start >= 2**31 - 1) or start == whole - 1):
        raise call.refusal("a slice that goes backwards from the middle")
    turned = torch.flip(value, [axis])
    if isinstance(end, int) and end < -(2**31) + 2:
        count = whole
    else:
        count = whole - 1 - end if not isinstance(end, int) or end >= 0 else -end - 1
    return torch.ops.aten.slice.Tensor(turned, axis, 0, count, step)


@rule("Expand")
def expand(call: Call) -> Value:
    value, wanted = call.value(0), items(call.array(1, "the shape"))
    if isinstance(value, np.ndarray) and all(isinstance(n, int) for n in wanted):
        return np.array(np.broadcast_to(value, np.broadcast_shapes(value.shape, tuple(wanted))))
    x = as_tensor(value)
    x = x.reshape([1] * (len(wanted) - x.dim()) + list(x.shape))
    wanted = [1] * (x.dim() - len(wanted)) + wanted
    return x.expand(
        [have if isinstance(want, int) and want == 1 else want for have, want in zip(x.shape, wanted)]
    )


@rule("Tile")
def tile(call: Call) -> Value:
    value, counts = call.value(0), items(call.array(1, "how often"))
    if isinstance(value, np.ndarray) and all(isinstance(n, int) for n in counts):
        return np.tile(value, counts)
    return as_tensor(value).repeat(counts)


@rule("Pad")
def pad(call: Call) -> Value:
    x = call.tensor(0)
    pads = call.get("pads") or (items(call.array(1, "the widths")) if call.has(1) else call.get("paddings"))
    fill, said = call.get("value", 0.0), call.get("mode", "constant")
    if call.has(2):
        fill = scalar(call.array(2, "what it is filled with"))
    axes = [a % x.dim() for a in items(call.array(3))] if call.has(3) else list(range(len(pads) // 2))
    begin, end = dict(zip(axes, pads[: len(axes)])), dict(zip(axes, pads[len(axes) :]))
    widths: list[Any] = []
    for axis in reversed(range(x.dim())):
        widths += [begin.get(axis, 0), end.get(axis, 0)]
    while widths and widths[-1] == 0 and widths[-2] == 0:
        widths = widths[:-2]
    if not widths:
        return x
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[said]
    if mode == "constant":
        return F.pad(x, widths, value=fill)
    if len(widths) // 2 > 3 or x.dim() - len(widths) // 2 not in (1, 2):
        widths = widths + [0, 0] * max(0, x.dim() - 2 - len(widths) // 2)
    return F.pad(x, widths, mode=mode)


@rule("ConstantOfShape")
def constant_of_shape(call: Call) -> Value:
    wanted, fill = items(call.array(0, "the shape")), call.get("value", np.zeros(1, np.float32))
    if (
        all(isinstance(n, int) for n in wanted)
        and np.prod(wanted) <= MOST_FILLED
        and fill.dtype.kind in "iub"
    ):
        return np.full(wanted, fill.reshape(-1)[0])
    return torch.full(wanted, fill.reshape(-1)[0].item(), dtype=as_tensor(fill).dtype)


@rule("Range", ignores=["stash_type"])  # how steps in half precision are rounded on the way
def range_(call: Call) -> Value:
    arrays = [call.array(i, "where it starts or ends") for i in range(3)]
    start, limit, step = map(scalar, arrays)
    if not any(map(is_symbolic, arrays)):
        return np.arange(start, limit, step, dtype=simplified(arrays[0]).dtype)
    floats = any(a.dtype.kind == "f" for a in arrays)
    return torch.arange(start, limit, step, dtype=torch.float32 if floats else torch.int64)


@rule("DepthToSpace")
def depth_to_space(call: Call) -> Value:
    x, block = call.tensor(0), call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // block**2, h * block, w * block)


@rule("SpaceToDepth")
def space_to_depth(call: Call) -> Value:
    x, block = call.tensor(0), call.get("blocksize")
    if call.get("mode", "DCR") != "DCR":
        raise call.refusal(f"the mode {call.get('mode')}")
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * block**2, h // block, w // block)


@rule("Trilu")
def triangle(call: Call) -> Value:
    x, offset = call.tensor(0), int(scalar(call.array(1))) if call.has(1) else 0
    return torch.triu(x, offset) if call.get("upper", 1) else torch.tril(x, offset)


@rule("EyeLike")
def eye_like(call: Call) -> Value:
    x, offset = call.tensor(0), call.get("k", 0)
    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]

    return (columns - rows == offset).to(DTYPES[call.get("dtype")] if call.get("dtype") else x.dtype)


@rule("ReverseSequence")
def reverse_sequence(call: Call) -> Value:
    x, batch, time = call.tensor(0), call.get("batch_axis", 1), call.get("time_axis", 0)
    lengths = call.tensor(1)
    shape = [1] * x.dim()
    steps = torch.arange(x.shape[time])
    shape[time] = -1
    steps = steps.reshape(shape)
    shape = [1] * x.dim()
    shape[batch] = -1
    ends = lengths.reshape(shape)
    index = torch.where(steps < ends, ends - 1 - steps, steps).expand(x.shape)
    return torch.gather(x, time, index)
