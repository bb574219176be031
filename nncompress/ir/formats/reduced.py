"""Weights in fewer bytes that are not theirs bit for bit: integers with scales, and factors.

    form                    stored                                          means
    integers, per channel   codes [n · bits/8 bytes], scales [C, 1]         code · scale
    integers, by groups     codes, scales [C, in / size], maybe zeros       (code − zero point) · scale
    factors                 first [r, in], second [out, r]                  second · first

`codes` are stored from 0 on, lowest bits first, of a tensor [C, …] whose rows are split into as many equal
groups as there are scales. What is stored describes itself, given the shape of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from nncompress.ir.formats.packed import Parts, from_bits, to_bits

PARTS = ("codes", "scales", "zeros", "first", "second")
LEAST = 64  # weights, from which on the number of bytes tells the bits
_BLOCK = 2**24  # codes that are unpacked at a time: they take eight bytes each


def is_reduced(parts: Mapping[str, Tensor]) -> bool:
    """Whether these are parts of a form of this module."""
    return "scales" in parts or "second" in parts


def store_integers(codes: Tensor, bits: int, scales: Tensor, zeros: Tensor | None = None) -> Parts:
    """The parts of a weight whose int8 `codes` [C, …] are those of `bits` bits, 2 to 8.

    Args:
        scales: float32 [C, groups].
        zeros: int8 [C, groups], or None where all are 0.
    """
    width = next(each for each in (2, 4, 8) if bits <= each)
    flat = codes.flatten()
    packed = [to_bits(part + 2 ** (width - 1), width) for part in flat.to(torch.int16).split(_BLOCK)]
    parts = {"codes": torch.cat(packed) if packed else flat.to(torch.uint8), "scales": scales.float()}
    return parts if zeros is None else {**parts, "zeros": zeros.to(torch.int8)}


def restore_reduced(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The float32 weight of this shape that the parts mean.

    Raises:
        ValueError: the parts do not fit each other or the shape; nothing larger than the shape is made.
    """
    if "second" in parts:
        return _product(parts.get("first"), parts["second"], shape)
    codes, scales, zeros = parts.get("codes"), parts["scales"], parts.get("zeros")
    if codes is None or codes.dtype != torch.uint8 or scales.dtype != torch.float32 or scales.dim() != 2:
        raise ValueError("scales without codes that they fit")
    count = prod(shape)
    rows, groups = scales.shape
    if not shape or rows != shape[0] or not groups or (count // max(rows, 1)) % groups:
        raise ValueError(f"scales {tuple(scales.shape)} for a weight {shape}")
    if zeros is not None and (zeros.dtype != torch.int8 or zeros.shape != scales.shape):
        raise ValueError(f"zero points {tuple(zeros.shape)} for scales {tuple(scales.shape)}")
    width = next((each for each in (2, 4, 8) if codes.numel() == -(-count * each // 8)), None)
    if width is None or count < LEAST:
        raise ValueError(f"{codes.numel()} bytes of codes for {count} weights")
    value = torch.empty(count)
    for start in range(0, count, _BLOCK):  # a whole number of bytes
        stop = min(start + _BLOCK, count)
        stored = codes.flatten()[start * width // 8 : -(-stop * width // 8)]
        value[start:stop] = from_bits(stored, width, stop - start) - 2 ** (width - 1)
    value = value.reshape(rows, groups, -1)
    if zeros is not None:
        value -= zeros[..., None]
    return value.mul_(scales[..., None]).reshape(shape)


def _product(first: Tensor | None, second: Tensor, shape: tuple[int, ...]) -> Tensor:
    if (
        first is None
        or not (first.dtype.is_floating_point and second.dtype.is_floating_point)
        or first.dim() != 2
        or second.dim() != 2
        or first.shape[0] != second.shape[1]
        or (second.shape[0], first.shape[1]) != shape
    ):
        raise ValueError(f"factors that do not multiply to a weight {shape}")
    return second.float() @ first.float()
