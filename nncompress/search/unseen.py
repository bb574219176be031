"""The samples of the promise are nothing that anything was fitted to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from nncompress.data import Dataset
from nncompress.errors import UsageError
from nncompress.ir.formats.raw_bytes import raw_bytes
from nncompress.progress import Progress

BY_CHANCE = 0.001  # of the samples of the promise: so many are shared by data sets now and then


def shared(fitted: Dataset, unseen: Dataset, limit: int | None, progress: Progress) -> tuple[int, int]:
    """How many samples of `unseen` are among those that passes take of `fitted`, by what the model receives,
    whatever their labels; and how many samples `unseen` has.

    Args:
        limit: what passes take of the data, or of either part of it (`Dataset.split`); None: all.

    Raises:
        UsageError: more than `BY_CHANCE`.
    """
    parts = (fitted,) if limit is None else (fitted, *fitted.split())
    known = {key for part in parts if part is not None for key in _keys(part, limit, progress)}
    found = [key in known for key in _keys(unseen, None, progress)]
    if sum(found) > BY_CHANCE * len(found):
        raise UsageError(
            "what --fit names holds samples of the half of --data that the promise is made on",
            got=f"{sum(found)} of the {len(found)} samples of {unseen.spec} are in {fitted.spec}",
            remedy="name other samples, or leave --fit out: the half that chooses is fitted to then",
        )
    return sum(found), len(found)


def _keys(data: Dataset, limit: int | None, progress: Progress) -> Iterator[bytes]:
    """A digest of each sample's inputs."""
    total, seen = data.planned_samples(limit), 0
    for batch in data.batches(64, limit):
        dims = batch.dims or (0,) * len(batch.inputs)
        own = [x for x, dim in zip(batch.samples_first(), dims) if dim is not None]
        for sample in range(len(batch)):
            digest = hashlib.sha256()
            for x in own:
                digest.update(raw_bytes(x[sample]).numpy().tobytes())
            yield digest.digest()
        seen += len(batch)
        progress.step(f"reading {data.spec}", seen, total)
