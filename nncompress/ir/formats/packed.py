"""Tensors in fewer bytes, bit for bit: few values by codebook, many zeros by bitmap.

    form                      stored                                                  wins where
    codebook                  codes [n · bits/8 bytes], codebook [K]                  few values
    codebook per channel      codes, codebook [C · K], offsets [1, C, 1] (0, K, 2K…)  few values per channel
    bitmap                    bitmap [n/8 bytes], values [1 + nonzeros]               many zeros
    bitmap and codebook       bitmap, codes [1 + nonzeros], codebook [K]              both

The codebook of a float32 tensor whose values are exact in half precision is stored so, as `codebook16`.
`codes` holds 1, 2, 4 or 8 bits per index, lowest bits first. Behind a bitmap the first entry is zero: the
k-th nonzero weight reads entry k and a zero weight reads entry 0, so that a running sum of the bitmap's bits,
times the bit, is the index. What is stored describes itself, given the shape of the tensor. Values are told
apart by their bits, as integers: a zero with a sign is no zero, and a NaN is a value like others.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

MOST = 256  # distinct values that an index of 8 bits tells apart
MOST_OF_BYTES = 16  # that an index of fewer bits tells apart
SAMPLE = 4096  # values looked at before a whole tensor is sorted
PARTS = ("bitmap", "codes", "codebook", "codebook16", "offsets", "values")

Parts = dict[str, Tensor]


def smallest(tensor: Tensor, overhead: int = 0, per_op: int = 0) -> Parts | None:
    """The smallest stored form of a float or int8 tensor, or None where that is the tensor itself.

    Args:
        overhead: bytes that the container adds for each form; it must pay for these as well.
        per_op: bytes of every op of the form, where the container holds a graph that computes it.
    """
    if not _packable(tensor) or tensor.numel() < 2:
        return None
    dtype, tensor = tensor.dtype, _bits(tensor.detach())
    size, item = tensor.numel(), tensor.element_size()
    nonzero = int(torch.count_nonzero(tensor))
    values = _distinct(tensor)
    short = _exact_in_half((tensor if values is None else values).view(dtype))

    def book(entries: int) -> int:
        """Bytes of a codebook; one in half precision takes an op to cast it."""
        return min(entries * item, 2 * entries + per_op) if short else entries * item

    sizes: dict[str, float] = {"dense": size * item}
    extra = overhead + 8 * per_op
    sizes["bitmap"] = size / 8 + (1 + nonzero) * item + extra
    if values is not None:
        unpacking = (0 if bits_for(len(values)) == 8 else 4) * per_op
        stored = code_bytes(size, len(values)) + book(len(values))
        sizes["codebook"] = stored + overhead + 3 * per_op + unpacking
        if nonzero < size:  # zero is one of the values
            stored = code_bytes(nonzero + 1, len(values)) + book(len(values))
            sizes["both"] = size / 8 + stored + extra + 2 * per_op + unpacking
    for axis in range(min(tensor.dim(), 2)):
        if (most := _most_per_channel(tensor, axis)) is not None:
            channels = tensor.shape[axis]
            stored = code_bytes(size, most) + book(most * channels) + 4 * channels
            sizes[f"channel {axis}"] = stored + overhead + (5 if bits_for(most) == 8 else 9) * per_op
    best = min(reversed(sizes), key=sizes.__getitem__)
    if best == "dense":
        return None
    if best.startswith("channel"):
        return _shortened(_per_channel(tensor, int(best[-1])), dtype, per_op)
    flat = tensor.flatten()
    if best == "codebook":
        assert values is not None
        return _shortened(_coded(flat, values), dtype, per_op)
    mask = flat != 0
    kept = torch.cat([flat.new_zeros(1), flat.masked_select(mask)])
    bitmap = {"bitmap": to_bits(mask, 1)}
    if best == "bitmap":
        return bitmap | {"values": kept.view(dtype)}
    return bitmap | _shortened(_coded(kept, torch.unique(kept)), dtype, per_op)


def restore(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The tensor that `smallest` stored so.

    Raises:
        ValueError: the parts do not fit each other or the shape; nothing larger than the shape is made.
    """
    count = prod(shape)
    bitmap, codes, book = parts.get("bitmap"), parts.get("codes"), _book(parts)
    entries = count
    if bitmap is not None:
        mask = _from_bitmap(bitmap, count)
        entries = 1 + int(mask.sum())
    if codes is None or book is None:
        values = parts.get("values")
        if bitmap is None or values is None:
            raise ValueError(f"a packed tensor of {', '.join(sorted(parts)) or 'nothing'}")
    else:
        offsets = parts.get("offsets")
        channels = 1 if offsets is None else max(offsets.numel(), 1)
        index = from_bits(codes, bits_for(len(book) // channels), entries)
        if offsets is not None:
            if bitmap is not None:
                raise ValueError("codebooks per channel behind a bitmap")
            index = (index.reshape(shape) + _fitting(offsets, shape)).flatten()
        if entries and not 0 <= int(index.min()) <= int(index.max()) < len(book):
            raise ValueError("an index beyond its codebook")
        values = book[index]
    if bitmap is not None:
        if values.numel() != entries:
            raise ValueError(f"{values.numel()} values where the bitmap has {entries - 1}")
        values = values.flatten()
        values = values[:1].expand(count).clone().masked_scatter_(mask, values[1:])
    return values.reshape(shape)


def distinct_values(tensor: Tensor) -> Tensor | None:
    """The values of a float or int8 tensor, sorted, or None where there are more than 256 (or one is NaN)."""
    if not _packable(tensor) or not tensor.numel():
        return None
    values = _distinct(tensor.detach())
    return None if values is None or bool(values.isnan().any()) else values


def _distinct(tensor: Tensor) -> Tensor | None:
    flat = tensor.flatten()
    step = max(1, len(flat) // SAMPLE)
    if len(flat) > SAMPLE and len(torch.unique(flat[::step])) > MOST:
        return None
    values = torch.unique(flat)
    return values if len(values) <= MOST else None


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers of that size."""
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _packable(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype == torch.int8


def _most_per_channel(tensor: Tensor, axis: int) -> int | None:
    """The most distinct values that one index of `axis` has, or None where there are more than can be stored
    in fewer bits.

    None also for a single channel, and for channels that are mostly distinct values.

    Args:
        tensor: of integers.
    """
    channels = tensor.shape[axis]
    if channels < 2 or tensor.numel() < 4 * channels:
        return None
    told_apart = MOST if tensor.element_size() > 1 else MOST_OF_BYTES
    limit = min(told_apart, tensor.numel() // channels // 2)
    rows = tensor.movedim(axis, 0).flatten(1)
    if len(torch.unique(rows[0])) > limit:
        return None
    ordered = rows.sort(1).values
    most = 1 + int((ordered[:, 1:] != ordered[:, :-1]).sum(1).max())
    return most if most <= limit else None


def bits_for(distinct: int) -> int:
    """The width of the index: 1, 2, 4 or 8."""
    return next(width for width in (1, 2, 4, 8) if distinct <= 2**width)


def code_bytes(count: int, distinct: int) -> int:
    """Stored bytes of `count` indices that tell `distinct` values apart."""
    return -(-count * bits_for(distinct) // 8)


def to_bits(indices: Tensor, bits: int) -> Tensor:
    """Indices of `bits` bits [n], 8 / bits of them in a byte: uint8 [n · bits / 8]."""
    group = 8 // bits
    if group == 1:
        return indices.to(torch.uint8)
    filled = torch.cat([indices, indices.new_zeros(-len(indices) % group)]).reshape(-1, group)
    places = torch.tensor([2 ** (bits * i) for i in range(group)], dtype=torch.uint8)
    return (filled.to(torch.uint8) * places).sum(1, dtype=torch.uint8)


def from_bits(stored: Tensor, bits: int, count: int) -> Tensor:
    """The indices [count] as int64.

    Raises:
        ValueError: so many are not stored.
    """
    if stored.dtype != torch.uint8 or stored.numel() != -(-count * bits // 8):
        raise ValueError(
            f"{stored.numel()} bytes of {stored.dtype} where {count} indices of {bits} bits belong"
        )
    places = torch.arange(0, 8, bits)
    return ((stored.flatten().to(torch.int64)[:, None] >> places) & (2**bits - 1)).flatten()[:count]


def _from_bitmap(stored: Tensor, count: int) -> Tensor:
    """The bits [count] as truth values.

    Raises:
        ValueError: so many are not stored.
    """
    if stored.dtype != torch.uint8 or stored.numel() != -(-count // 8):
        raise ValueError(f"{stored.numel()} bytes of {stored.dtype} where {count} bits belong")
    bits = np.unpackbits(stored.flatten().numpy(), count=count, bitorder="little")
    return torch.from_numpy(bits).to(torch.bool)


def _coded(flat: Tensor, values: Tensor) -> Parts:
    codes = torch.searchsorted(values, flat.contiguous())
    return {"codes": to_bits(codes, bits_for(len(values))), "codebook": values}


def _per_channel(tensor: Tensor, axis: int) -> Parts:
    rows = tensor.movedim(axis, 0).flatten(1)
    books = [torch.unique(row) for row in rows]
    most = max(len(book) for book in books)
    # A channel of fewer values repeats its largest, which no search returns.
    book = torch.stack([torch.cat([b, b[-1:].expand(most - len(b))]) for b in books])
    codes = torch.searchsorted(book, rows.contiguous())
    moved = [tensor.shape[axis], *tensor.shape[:axis], *tensor.shape[axis + 1 :]]
    codes = codes.reshape(moved).movedim(0, axis).flatten()
    spread = [-1 if dim == axis else 1 for dim in range(tensor.dim())]
    offsets = (most * torch.arange(len(books), dtype=torch.int32)).reshape(spread)
    return {"codes": to_bits(codes, bits_for(most)), "codebook": book.flatten(), "offsets": offsets}


def _exact_in_half(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and torch.equal(tensor.half().float(), tensor)


def _shortened(parts: Parts, dtype: torch.dtype, per_op: int) -> Parts:
    """With the codebook as numbers of `dtype`: in half precision, where that is exact and saves more than the
    op that casts it."""
    book = parts["codebook"].view(dtype)
    parts = parts | {"codebook": book}
    if not _exact_in_half(book) or 2 * book.numel() <= per_op:
        return parts
    return {name: part for name, part in parts.items() if name != "codebook"} | {"codebook16": book.half()}


def _book(parts: Mapping[str, Tensor]) -> Tensor | None:
    short = parts.get("codebook16")
    if short is None:
        book = parts.get("codebook")
        return None if book is None else book.flatten()
    if short.dtype != torch.float16:
        raise ValueError(f"a codebook16 of {short.dtype} where float16 belongs")
    return short.float().flatten()


def _fitting(offsets: Tensor, shape: tuple[int, ...]) -> Tensor:
    if offsets.dim() != len(shape) or any(o not in (1, s) for o, s in zip(offsets.shape, shape)):
        raise ValueError(f"offsets {tuple(offsets.shape)} for a tensor {shape}")
    return offsets
