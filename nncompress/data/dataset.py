"""Batches a model takes as they are, from any source, never more than a window of them in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nncompress.data.assumed import assumptions
from nncompress.data.fit import Conversion
from nncompress.data.held_out import hold_out
from nncompress.data.input_batches import InputBatches, Inputs
from nncompress.data.normalization import Normalization
from nncompress.data.source import Field, Raw, Source, StreamSource
from nncompress.data.vocabulary import Vocabulary
from nncompress.dtypes import dtype_name
from nncompress.errors import DataError
from nncompress.options import check_whole

SHUFFLE_WINDOW = 4096  # samples of a stream that are held at once to shuffle them
INPUT_BYTES = 2**22  # of a batch's inputs, where nobody knows what a model makes of them: up to 60 times that
STREAM_BYTES = 2**31  # of a stream's inputs that are held where they are needed more than once


@dataclass(frozen=True)
class Batch:
    """What one step takes.

    Attributes:
        inputs: one tensor per input of the model, in its order and dtypes.
        labels: int64 [N] classes, float32 [N, ...] targets, or None.
        dims: per input the dim along which its N samples lie, None where they share it; empty: 0 for all.
        vocabulary: how a model spells, where labels are texts: int64 [N, characters], filled up with -1.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    dims: tuple[int | None, ...] = ()
    vocabulary: Vocabulary | None = None

    def __len__(self) -> int:
        for tensor, dim in zip(self.inputs, self.dims or (0,)):
            if dim is not None:
                return tensor.shape[dim]
        return 1  # all samples share all inputs

    def samples_first(self) -> tuple[Tensor, ...]:
        """The inputs with their samples along dim 0; what all share as it is."""
        dims = self.dims or (0,) * len(self.inputs)
        return tuple(x if d is None else x.movedim(d, 0) for x, d in zip(self.inputs, dims))

    def part(self, samples: slice | Tensor) -> Batch:
        """Some of its samples."""
        inputs = tuple(
            tensor if dim is None else tensor[(*[slice(None)] * dim, samples)]
            for tensor, dim in zip(self.inputs, self.dims or (0,) * len(self.inputs))
        )
        labels = None if self.labels is None else self.labels[samples]
        return replace(self, inputs=inputs, labels=labels)


class Dataset:
    """Samples that fit a model.

    Attributes:
        spec: the text it was opened from.
        inputs: name, dtype and shape of one sample, as the model receives them.
        class_names: where the source knows them.
        has_labels: every batch has labels; otherwise none does.
        normalization: what is applied to the pixels, or None.
        fixed_batch: the batch size, where the model has a fixed one.
        dims: per input the dim along which a batch's samples lie, None where they share it.
        least_batch: the fewest samples that the model takes at a time (`at_least`).
        classes: one more than the greatest class number, where the source knows it.
        vocabulary: how a model spells the texts that the labels are.
    """

    def __init__(
        self,
        spec: str,
        source: Source | StreamSource,
        conversions: tuple[Conversion, ...],
        fixed_batch: int | None = None,
        asked: bool = True,
    ) -> None:
        self.spec, self._asked = spec, asked
        self._source, self._conversions = source, conversions
        self.inputs = tuple(Field(c.field.name, dtype_name(c.dtype), c.shape) for c in conversions)
        self.class_names = source.class_names
        self.has_labels = source.has_labels
        self.normalization: Normalization | None = next(
            (c.normalization for c in conversions if c.normalization), None
        )
        self.fixed_batch = fixed_batch
        self.least_batch = 1
        self.dims = tuple(c.batch_dim for c in conversions)
        self.classes: int | None = getattr(source, "classes", None)
        self.vocabulary: Vocabulary | None = getattr(source, "vocabulary", None)
        self._length = len(source) if isinstance(source, Source) else None

    def __len__(self) -> int:
        """The number of samples; of a stream it is counted once, by going through it."""
        if self._length is None:
            self._length = sum(self._count(inputs) for inputs, _ in self._raw(SHUFFLE_WINDOW, None, None))
        return self._length

    def assumptions(self) -> list[str]:
        """What it was taken for where it could be another thing; of a stream nothing is read for that."""
        if not isinstance(self._source, Source):
            return []
        return assumptions(self.spec, self._source, self._conversions, self.fixed_batch, self._asked)

    def bound(self, rows: Sequence[int | None]) -> None:
        """From now on refuse whole numbers that a table of so many rows, per input, has none for."""
        self._conversions = tuple(replace(c, rows=count) for c, count in zip(self._conversions, rows))

    def at_least(self, samples: int) -> None:
        """From now on give no batch of fewer samples: a smaller rest joins the last one.

        Raises:
            DataError: there are fewer in all.
        """
        self.least_batch = samples
        if self._length is not None and self._length < samples:
            raise self._too_few(self._length)

    def _too_few(self, samples: int) -> DataError:
        return DataError(
            f"{self.spec} has fewer samples than the model takes at a time",
            got=str(samples),
            expected=f"at least {self.least_batch}: of fewer its graph makes something else",
        )

    def measuring_batch(self, batch_size: int) -> int:
        """At most `batch_size` samples, and no more than fit in `INPUT_BYTES`: for who runs a model on them
        whose activations are not known, and the results do not depend on it."""
        sizes = [
            math.prod(field.shape) * conversion.dtype.itemsize
            for field, conversion, dim in zip(self.inputs, self._conversions, self.dims)
            if dim is not None
        ]
        return measuring_batch(sum(sizes), batch_size)

    def planned_samples(self, limit: int | None = None) -> int | None:
        """How many samples `batches` will give; None for a stream that nobody has counted yet."""
        if self._length is None:
            return limit
        samples = self._length if limit is None else min(limit, self._length)
        return samples // self.fixed_batch * self.fixed_batch if self.fixed_batch else samples

    def batches(
        self, batch_size: int, limit: int | None = None, shuffle_seed: int | None = None
    ) -> Iterator[Batch]:
        """Stream the samples as batches [batch_size, ...]; the last one may be smaller.

        Args:
            limit: use only this many samples, spread evenly over the data (which is often ordered by
                class); of a stream, its first ones.
            shuffle_seed: shuffle with this seed: all samples, or those of a stream within a window of
                `SHUFFLE_WINDOW`. The same seed gives the same order. None keeps the order.

        A model with a fixed batch size gets batches of that size only; samples left over are dropped. One
        that takes no fewer than `least_batch` gets no smaller ones, whatever size and limit say.

        Raises:
            DataError: a sample cannot be read, or differs from the others in shape, or holds NaN; or there
                are fewer than the model takes at a time.
            UsageError: a size below 1.
        """
        size, limit = self._sizes(batch_size, limit)
        for inputs, labels in self._whole(self._raw(size, limit, shuffle_seed)):
            if self.fixed_batch and self._count(inputs) < self.fixed_batch:
                continue
            yield Batch(
                self._converted(inputs),
                None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)),
                self.dims if any(dim != 0 for dim in self.dims) else (),
                self.vocabulary,
            )

    def input_batches(self, batch_size: int, limit: int | None = None) -> InputBatches:
        """The inputs of `batches`, for who needs them more than once.

        Samples that are read by index are read anew each time, and none is held. A stream may come in another
        order the next time, so its inputs are.

        Raises:
            DataError: as `batches`; or the inputs of a stream take more than `STREAM_BYTES`.
            UsageError: a size below 1.
        """
        source = self._source
        if isinstance(source, Source):
            size, limit = self._sizes(batch_size, limit)
            order = _spread(len(source), limit)
            count = len(order) // size if self.fixed_batch else -(-len(order) // size)
            ends = [size * (number + 1) for number in range(count)]
            if count > 1 and len(order) - ends[-2] < self.least_batch:
                ends[-2:] = ends[-1:]
            return InputBatches(
                lambda number: self._converted(source.read(order[number * size : ends[number]])[0]),
                range(len(ends)),
            )
        held, taken = [], 0
        for batch in self.batches(batch_size, limit):
            held.append(batch.inputs)
            taken += sum(x.nbytes for x in batch.inputs)
            if taken > STREAM_BYTES:
                raise DataError(
                    f"{self.spec} is a stream, whose samples this has to hold in memory",
                    got=f"more than {STREAM_BYTES / 2**30:g} GiB, in {len(held)} batches of {batch_size}",
                    remedy="fewer samples with --limit; or data that is read by index: an .npz, images",
                )
        return InputBatches.held(held)

    def _sizes(self, batch_size: int, limit: int | None) -> tuple[int, int | None]:
        """The batch size and the limit, as the model takes them.

        Raises:
            UsageError: one is below 1.
        """
        for name, value in (("the batch size", batch_size), ("the limit of samples", limit)):
            if value is not None:
                check_whole(name, value)
        least = self.least_batch
        return self.fixed_batch or max(batch_size, least), None if limit is None else max(limit, least)

    def _whole(self, batches: Iterator[Raw]) -> Iterator[Raw]:
        """The batches, a last one that is too small for the model joined to the one before."""
        if self.least_batch < 2:
            yield from batches
            return
        held = next(batches, None)
        for inputs, labels in batches:
            assert held is not None
            if self._count(inputs) >= self.least_batch:
                yield held
                held = inputs, labels
            else:
                held = _joined([held, (inputs, labels)])
        if held is not None and self._count(held[0]) < self.least_batch:
            raise self._too_few(self._count(held[0]))
        if held is not None:
            yield held

    def _converted(self, inputs: tuple[np.ndarray, ...]) -> Inputs:
        return tuple(convert(array) for convert, array in zip(self._conversions, inputs))

    def _count(self, inputs: tuple[np.ndarray, ...]) -> int:
        return next((len(array) for array, dim in zip(inputs, self.dims) if dim is not None), 0)

    def _raw(self, size: int, limit: int | None, seed: int | None) -> Iterator[Raw]:
        source = self._source
        if not isinstance(source, Source):
            yield from _recut(source.stream(), size, limit, seed)
            return
        order = _spread(len(source), limit)
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        for start in range(0, len(order), size):
            yield source.read(order[start : start + size])

    def split(self) -> tuple[Dataset, Dataset | None]:
        """The samples to fit to, and those held out to measure on: the same two parts at every call.

        Returns: None for the second where there are too few samples (see `nncompress.data.held_out`).
        """
        fitted, held = hold_out(self._source, self.fixed_batch or self.least_batch)
        parts = [
            None if source is None else Dataset(self.spec, source, self._conversions, self.fixed_batch)
            for source in (fitted, held)
        ]
        for part in parts:
            if part is not None:
                part.least_batch = self.least_batch
        assert parts[0] is not None
        return parts[0], parts[1]

    def require_labels(self, purpose: str, remedy: str = "") -> None:
        """Refuse data without labels before work starts.

        Args:
            remedy: what can be done without any.

        Raises:
            DataError: there are none.
        """
        if not self.has_labels:
            raise DataError(
                f"{purpose} needs labels and {self.spec} has none",
                expected="an array y of labels, or images in one folder per class",
                remedy=remedy,
            )


def measuring_batch(sample_bytes: int, most: int) -> int:
    """At most `most` samples of so many bytes, and no more than fit in `INPUT_BYTES`; at least one."""
    return max(1, min(most, INPUT_BYTES // max(sample_bytes, 1)))


def _spread(count: int, limit: int | None) -> np.ndarray:
    """Numbers of the samples to use, spread evenly over `count`: int64."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.linspace(0, count, limit, endpoint=False).astype(np.int64)


def _recut(stream: Iterator[Raw], size: int, limit: int | None, seed: int | None) -> Iterator[Raw]:
    """A stream cut anew into batches of `size`, shuffled within a window where there is a seed."""
    generator = None if seed is None else np.random.default_rng(seed)
    window = size if generator is None else max(size, SHUFFLE_WINDOW // size * size)
    held: list[Raw] = []
    waiting = samples = 0
    for inputs, labels in stream:
        if limit is not None and samples + len(inputs[0]) > limit:
            keep = limit - samples
            inputs, labels = tuple(x[:keep] for x in inputs), None if labels is None else labels[:keep]
        held.append((inputs, labels))
        samples += len(inputs[0])
        waiting += len(inputs[0])
        if waiting >= window:
            yield from _cut(held, size, generator, keep_rest=True)
            waiting %= size
        if samples == limit:
            break
    yield from _cut(held, size, generator, keep_rest=False)


def _joined(parts: Sequence[Raw]) -> Raw:
    """Batches as one."""
    inputs = tuple(np.concatenate(each) for each in zip(*(x for x, _ in parts)))
    return inputs, None if parts[0][1] is None else np.concatenate([y for _, y in parts if y is not None])


def _cut(
    held: list[Raw], size: int, generator: np.random.Generator | None, *, keep_rest: bool
) -> Iterator[Raw]:
    """Take whole batches of `size` out of `held`; the rest stays there, or is the last batch."""
    if not held:
        return
    inputs, labels = _joined(held)
    held.clear()
    count = len(inputs[0])
    if generator is not None:
        order = generator.permutation(count)
        inputs, labels = tuple(x[order] for x in inputs), None if labels is None else labels[order]
    whole = count // size * size if keep_rest else count
    for start in range(0, whole, size):
        part = slice(start, min(start + size, whole))
        yield tuple(x[part] for x in inputs), None if labels is None else labels[part]
    if whole < count:
        held.append((tuple(x[whole:] for x in inputs), None if labels is None else labels[whole:]))
