"""Random changes to images that do not change what they show, by kornia (on the tensor's device).

Pixels are put back on their scale of 0 to 1 first, and normalised again after.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nncompress.data import Batch, Dataset, Normalization
from nncompress.data.normalization import standardized
from nncompress.errors import UsageError
from nncompress.extras import need
from nncompress.train.settings import TrainSettings


class Augmentation:
    """Changes the first image input of every batch. Draws from torch's default generator.

    Raises:
        MissingExtraError: kornia is not installed.
        UsageError: no input is an image.
    """

    def __init__(self, settings: TrainSettings, dataset: Dataset) -> None:
        images = [
            i for i, f in enumerate(dataset.inputs) if len(f.shape) == 3 and f.dtype.startswith("float")
        ]
        if not images:
            raise UsageError(
                "train: augmentation is for images",
                got=", ".join(f"{f.name} {f.dtype} {list(f.shape)}" for f in dataset.inputs),
                expected="a float input [channels, height, width]",
            )
        self._position = images[0]
        self._normalization = dataset.normalization
        per_image = self._normalization is not None and self._normalization.per_image
        if per_image and (settings.brightness or settings.contrast):
            raise UsageError(
                "train: --brightness and --contrast do nothing where every image is standardized",
                remedy="leave them out, or give --normalize means and standard deviations",
            )
        height, width = dataset.inputs[self._position].shape[1:]
        self._operations = _operations(settings, height, width)

    def __call__(self, batch: Batch) -> Batch:
        images = self._changed(batch.inputs[self._position])
        inputs = tuple(images if i == self._position else x for i, x in enumerate(batch.inputs))
        return Batch(inputs, batch.labels)

    def _changed(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W], normalised as the data set is."""
        with torch.no_grad():
            images = _denormalized(images, self._normalization)
            for operation in self._operations:
                images = operation(images)
            return _normalized(images, self._normalization)


def _operations(settings: TrainSettings, height: int, width: int) -> list[Any]:
    need("train", "train: image augmentation")
    import kornia.augmentation as K

    chosen: list[Any] = []
    if settings.crop:
        chosen.append(K.RandomCrop((height, width), padding=settings.crop))
    if settings.flip:
        chosen.append(K.RandomHorizontalFlip(p=0.5))
    if settings.brightness:
        chosen.append(K.RandomBrightness((1 - settings.brightness, 1 + settings.brightness), p=1.0))
    if settings.contrast:
        chosen.append(K.RandomContrast((1 - settings.contrast, 1 + settings.contrast), p=1.0))
    return chosen


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)


def _denormalized(images: Tensor, how: Normalization | None) -> Tensor:
    return images if how is None else images * _column(how.std, images) + _column(how.mean, images)


def _normalized(images: Tensor, how: Normalization | None) -> Tensor:
    if how is not None and how.per_image:
        return standardized(images)
    return images if how is None else (images - _column(how.mean, images)) / _column(how.std, images)
