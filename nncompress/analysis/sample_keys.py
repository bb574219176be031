"""Which samples are the same, by what a model receives of them."""

from __future__ import annotations

import hashlib

from nncompress.data import Batch
from nncompress.ir.formats.raw_bytes import raw_bytes


def sample_keys(batch: Batch) -> list[bytes]:
    """A digest of each sample's inputs; what all samples share is in none."""
    dims = batch.dims or (0,) * len(batch.inputs)
    own = [x for x, dim in zip(batch.samples_first(), dims) if dim is not None]
    found = []
    for sample in range(len(batch)):
        digest = hashlib.sha256()
        for x in own:
            digest.update(f"{x.dtype} {tuple(x.shape[1:])}".encode())
            digest.update(raw_bytes(x[sample]).numpy().data)
        found.append(digest.digest())
    return found
