"""Weights larger than what is stored of them: a small file must not ask for much memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MOST_REPEATED = 2**27  # bytes that weights may take beyond those stored, by strides of 0


def repeated_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes that these take as copies beyond those stored: strides of 0, views that overlap."""
    distinct = {}
    for tensor in tensors:
        if tensor.layout == torch.strided and not tensor.is_nested:
            storage = tensor.untyped_storage()
            view = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
            distinct[storage._cdata, view] = (tensor.numel() * tensor.element_size(), storage.nbytes())
    taken: dict[int, int] = {}
    for (storage, _), (size, _) in distinct.items():
        taken[storage] = taken.get(storage, 0) + size
    stored = {storage: nbytes for (storage, _), (_, nbytes) in distinct.items()}
    return sum(max(0, size - stored[storage]) for storage, size in taken.items())
