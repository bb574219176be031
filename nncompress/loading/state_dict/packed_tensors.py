"""Undoing what `export.write.safetensors` packed and entropy-coded, in a file from anyone's hand."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from nncompress.dtypes import INPUTS
from nncompress.ir.formats import packed, reduced
from nncompress.ir.formats.deflate import decode
from nncompress.loading.json_schema import Check, admit, listed, mapped, one_of, plain

_PARTS = sorted({*packed.PARTS, *reduced.PARTS})
_SHAPE = listed(plain(int, lambda size: 0 <= size < 2**40))
_DTYPE = one_of(*INPUTS)


def _coded(value: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    dtype, shape = listed(lambda item: item)(value)
    return getattr(torch, _DTYPE(dtype)), tuple(_SHAPE(shape))


def restore_tensors(tensors: dict[str, Tensor], header: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under their own names; those that the header does not mention as they are.

    Raises:
        ValueError: header and tensors do not fit; no more than 32 times the stored bytes is unpacked before
            that is known.
        Rejected: the header is not what nncompress writes.
    """
    found = dict(tensors)
    for name, (dtype, shape) in _entry(header, "deflated", _coded).items():
        stream = _taken(found, name)
        if stream.dtype != torch.uint8:
            raise ValueError(f"{name!r} is no stream of bytes")
        data = bytearray(decode(stream.numpy().tobytes(), prod(shape) * dtype.itemsize))
        found[name] = (
            torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
        )
    for name, shape in _entry(header, "packed", _SHAPE).items():
        parts = {part: found.pop(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in found}
        found[name] = restored(parts, tuple(shape))
    return found


def restored(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The tensor that the parts stand for, in whichever form.

    Raises:
        ValueError: they do not fit each other or the shape.
    """
    read = reduced.restore_reduced if reduced.is_reduced(parts) else packed.restore
    return read(parts, shape)


def _entry(header: Mapping[str, str], key: str, check: Check) -> dict[str, Any]:
    if not header.get(key, "").startswith("{"):  # none, or some other tool's
        return {}
    return admit(mapped(plain(str), check), header[key].encode())


def _taken(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{name!r} is missing")
    return tensors[name]
