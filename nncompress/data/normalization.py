"""(x / 255 - mean) / std, per channel, or with the mean and standard deviation of each image itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from nncompress.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation per channel (or one for all), on the scale 0 … 1 of the pixels.

    Attributes:
        per_image: those of each image are used instead, over all its channels and pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    per_image: bool = False

    def __post_init__(self) -> None:
        values = (*self.mean, *self.std)
        if not values or len(self.mean) != len(self.std):
            raise DataError(
                "the normalisation needs one mean and one standard deviation per channel",
                got=f"{len(self.mean)} means and {len(self.std)} standard deviations",
                remedy='write them as "0.485,0.456,0.406/0.229,0.224,0.225"',
            )
        if not all(math.isfinite(value) for value in values) or min(self.std) <= 0:
            raise DataError(
                "the normalisation's numbers make no sense",
                got=str(self),
                expected="finite means, standard deviations above 0",
            )

    def __str__(self) -> str:
        if self.per_image:
            return "per-image"
        return "/".join(",".join(f"{v:g}" for v in values) for values in (self.mean, self.std))


def parse_normalization(text: str) -> Normalization | None:
    """`imagenet`, `none` (None), `per-image`, `m1,m2,m3/s1,s2,s3`, or `m/s` for one channel or all of them.

    Raises:
        DataError: the text is none of these.
    """
    if text == "none":
        return None
    if text == "per-image":
        return Normalization((0.0,), (1.0,), per_image=True)
    if text == "imagenet":
        return Normalization(IMAGENET_MEAN, IMAGENET_STD)
    try:
        mean, std = (tuple(float(v) for v in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise DataError(
            "the normalisation cannot be read",
            got=repr(text),
            expected='"imagenet", "per-image", "none", or means/standard deviations such as'
            ' "0.5,0.5,0.5/0.25,0.25,0.25"',
        ) from None
    return Normalization(mean, std)


def standardized(images: Tensor) -> Tensor:
    """Each of images [N, ...] with mean 0 and standard deviation 1.

    The deviation is at least 1/√n for n values on the scale 0 … 255, as in TensorFlow's
    `per_image_standardization`, which the papers used: a flat image does not become noise.
    """
    flat = images.flatten(1)
    deviation = flat.std(1, correction=0, keepdim=True).clamp_min(1 / (255 * math.sqrt(flat.shape[1])))
    return ((flat - flat.mean(1, keepdim=True)) / deviation).reshape(images.shape)
