"""What data is taken for where it could be another thing: said, since figures depend on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nncompress.data.fit import CHANNELS, Conversion
from nncompress.data.source import Source
from nncompress.dtypes import dtype_name

LOOKED_AT = 16  # samples
MOST_LOST = 0.5  # of what samples differ by, in another precision


def assumptions(
    spec: str, source: Source, conversions: Sequence[Conversion], fixed_batch: int | None, asked: bool
) -> list[str]:
    """One line each, for data that is read by index.

    Args:
        asked: the user said how pixels are normalised.
    """
    inputs, labels = source.read(np.arange(min(LOOKED_AT, len(source))))
    found = [f"{spec}: {note}" for note in getattr(source, "notes", ())]
    found += [] if fixed_batch is None else _left_over(spec, len(source), fixed_batch)
    for conversion, array in zip(conversions, inputs):
        found += _rounded(spec, conversion, array)
    if not asked:
        for conversion, array in zip(conversions, inputs):
            found += _pixels(spec, conversion, array)
    if labels is not None and _one_hot(labels):
        found.append(
            f"{spec}: the labels are one 1 among zeros, taken as numbers that the outputs are to meet; class "
            "numbers (y.argmax(1)) are measured by top-1 and trained by cross-entropy"
        )
    if labels is not None and _two_values(labels):
        found.append(
            f"{spec}: the first {len(labels)} labels are 0 and 1 as numbers with a point, taken as amounts; "
            "as classes they are measured by --metric top1 or f1, or where they are integers (y.astype(int))"
        )
    return found


def _left_over(spec: str, samples: int, batch: int) -> Iterator[str]:
    left = samples % batch
    if left:
        which = "sample is" if left == 1 else f"{left} samples are"
        yield f"{spec}: the model takes batches of {batch} only, the last {which} left out of {samples}"


def _rounded(spec: str, conversion: Conversion, array: np.ndarray) -> Iterator[str]:
    """Numbers that differ by little of their size, as times in seconds do."""
    shared = conversion.batch_dim is None
    if array.dtype.kind != "f" or not conversion.dtype.is_floating_point or shared or len(array) < 2:
        return
    wide = conversion.unrounded(array).double().reshape(len(array), -1)
    lost = (wide.to(conversion.dtype).to(wide.dtype) - wide).norm(dim=0)
    apart = (wide - wide[0]).norm(dim=0)
    rounded = int(((lost > MOST_LOST * apart) & (apart > 0)).sum())
    if rounded:
        yield (
            f"{spec}: {conversion.field.name} is given to the model in {dtype_name(conversion.dtype)}, which "
            f"rounds {rounded} of its {wide.shape[1]} values by more than {MOST_LOST:.0%} of what samples "
            "differ by: subtract what they share, in the data and where the model is trained"
        )


def _pixels(spec: str, conversion: Conversion, array: np.ndarray) -> Iterator[str]:
    name = conversion.field.name
    colour = conversion.layout != "as is" and len(conversion.shape) == 3 and conversion.shape[0] == 3
    if conversion.scale and colour and conversion.normalization is None:
        yield (
            f"{spec}: bytes of {name} are given to the model as x / 255, without mean and deviation: if it "
            "was trained with them, --normalize imagenet (or mean/std); --normalize none is this"
        )
    if not (array.dtype.kind == "f" and array.ndim == 4 and array.shape[1] in CHANNELS):
        return
    low, high = float(array.min()), float(array.max())
    if low >= 0 and 2 < high <= 255 and bool((array == np.round(array)).all()):
        yield (
            f"{spec}: {name} holds whole numbers up to {high:g}, given to the model as they are: if it was "
            "trained on pixels from 0 to 1, save them as uint8, or divided by 255"
        )


def _one_hot(labels: np.ndarray) -> bool:
    if labels.dtype.kind != "f" or labels.ndim != 2 or labels.shape[1] < 2:
        return False
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all())


def _two_values(labels: np.ndarray) -> bool:
    return labels.dtype.kind == "f" and labels.size == len(labels) and set(np.unique(labels)) == {0.0, 1.0}
