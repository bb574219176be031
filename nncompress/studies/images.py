"""Labelled images for the studies that train classifiers: random crops to train on, the centre to test on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from nncompress.data import Dataset, ExpectedInput, Field, open_data
from nncompress.data.fit import fit_inputs
from nncompress.data.normalization import parse_normalization
from nncompress.data.source import ArraySource, Raw
from nncompress.errors import DataError, UsageError

PER_IMAGE = "per-image"  # to zero mean and unit variance, as the thesis
HELD_OUT = 0.2


class Images:
    """Pixels uint8 [N, H, W, C] with their classes [N]."""

    def __init__(self, spec: str, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.spec, self.pixels, self.labels = spec, pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[3]

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def some(self, chosen: np.ndarray | slice, name: str) -> Images:
        return Images(f"{self.spec} ({name})", self.pixels[chosen], self.labels[chosen])

    def spread(self, count: int) -> Images:
        """`count` of them, evenly over the whole, which may be ordered by class."""
        if count >= len(self):
            return self
        return self.some(
            np.linspace(0, len(self), count, endpoint=False).astype(np.int64), f"{count} of them"
        )


class Crops(Dataset):
    """Windows of the size the model takes: where the samples are shuffled, random ones, else the centre.

    The shuffle's seed draws the windows too, so that a resumed run sees the very same ones. `normalize` is as
    for `--normalize`.
    """

    def __init__(
        self, images: Images, inputs: Sequence[ExpectedInput], normalize: str | None = PER_IMAGE
    ) -> None:
        height, width = inputs[0].shape[2:]
        assert isinstance(height, int)
        assert isinstance(width, int)
        if images.pixels.shape[1] < height or images.pixels.shape[2] < width:
            raise DataError(
                f"{images.spec}: the images are too small",
                got="x".join(map(str, images.pixels.shape[1:3])),
                expected=f"at least {height}x{width}",
            )
        self._window = height, width
        self._room = images.pixels.shape[1] - height, images.pixels.shape[2] - width
        source = ArraySource({"images": images.pixels}, images.labels, origin=images.spec)
        field = Field("images", "uint8", (height, width, images.channels))
        conversions = fit_inputs(
            (field,),
            list(inputs),
            parse_normalization(normalize or "none"),
            asked=normalize is not None,
            origin=images.spec,
        )
        super().__init__(images.spec, source, conversions)

    @property
    def room(self) -> tuple[int, int]:
        """How far the window can move, in pixels down and right."""
        return self._room

    def _raw(self, size: int, limit: int | None, seed: int | None) -> Iterator[Raw]:
        generator = None if seed is None else np.random.default_rng(seed)
        for (pixels,), labels in super()._raw(size, limit, seed):
            yield (self._cropped(pixels, generator),), labels

    def _cropped(self, pixels: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
        """uint8 [N, H, W, C] → [N, height, width, C]."""
        spare = [have - want for have, want in zip(pixels.shape[1:3], self._window)]
        windows = np.lib.stride_tricks.sliding_window_view(pixels, self._window, axis=(1, 2))
        if generator is None:
            return windows[:, spare[0] // 2, spare[1] // 2].transpose(0, 2, 3, 1)
        top, left = (generator.integers(0, room + 1, len(pixels)) for room in spare)
        return windows[np.arange(len(pixels)), top, left].transpose(0, 2, 3, 1)


def open_images(
    data: str | None, study: str, limits: tuple[int | None, int | None] = (None, None)
) -> tuple[Images, Images]:
    """Training and test images of `data`: its two splits, or, where it names one split or has no splits, a
    fixed fifth of it held out.

    Args:
        limits: of the training and of the test images, spread over all of them.

    Raises:
        UsageError: no data was given.
        DataError: it is not labelled images of one size.
    """
    if data is None:
        raise UsageError(
            f"reproduce {study} needs labelled images", remedy="--data cifar10:DIR, mnist:DIR or file.npz"
        )
    if data.startswith(("cifar10:", "mnist:")) and "?" not in data:
        return _read(f"{data}?split=train", limits[0]), _read(f"{data}?split=test", limits[1])
    every = _read(data, None)
    order = np.random.default_rng(0).permutation(len(every))
    held_out = round(HELD_OUT * len(every))
    train, test = order[held_out:][: limits[0]], order[:held_out][: limits[1]]
    return every.some(train, f"{len(train)} of them"), every.some(test, f"{len(test)} others")


def _read(spec: str, limit: int | None) -> Images:
    dataset = open_data(spec, None, "none")
    dataset.require_labels("training a classifier")
    if (
        len(dataset.inputs) != 1
        or len(dataset.inputs[0].shape) != 3
        or not dataset.inputs[0].dtype == "float32"
    ):
        raise DataError(
            f"{spec} is not images",
            got=", ".join(f"{f.name} {f.dtype} {list(f.shape)}" for f in dataset.inputs),
            expected="uint8 images, one per sample",
        )
    pixels, labels = [], []
    for batch in dataset.batches(1000, limit):
        assert batch.labels is not None
        pixels.append((batch.inputs[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
        labels.append(batch.labels.numpy())
    if limit is not None:
        spec += f" ({limit} of them)"
    return Images(spec, np.concatenate(pixels), np.concatenate(labels))
