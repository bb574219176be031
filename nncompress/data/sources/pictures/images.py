"""A folder with one folder of images per class; classes are numbered in alphabetical order.

Images without class folders have no labels. Images of another size than the model takes are resized so
that the crop is the usual 7/8 of the shorter side (224 of 256), then cropped at the centre.

A header of some bytes can promise an image of many gigabytes: its pixels are bounded before any is decoded.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nncompress.data.class_folders import files_by_class, files_in
from nncompress.data.fit import CHANNELS, ExpectedInput
from nncompress.data.kind import Kind
from nncompress.data.normalization import Normalization
from nncompress.data.source import Field, Raw, check_allocation
from nncompress.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MOST_BYTES = 2**30  # of one encoded image
MOST_PIXELS = 89_478_485  # of one image, where Pillow itself warns: 1/4 GiB at three bytes a pixel
# A flat image takes few bytes: deflate and LZW reach some 3000 pixels a byte. Beyond that a header lies.
FREE_PIXELS, PIXELS_PER_BYTE = 2**20, 4096


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image still to be decoded: its name for errors, its file or its bytes, its class."""

    name: str
    content: Path | bytes
    label: int | None

    def open(self) -> Image.Image:
        """With its header read, and no pixel.

        Raises:
            OSError: not an image of a known format.
            ValueError: more bytes, pixels or frames than an image of a data set has.
        """
        in_file = isinstance(self.content, Path)
        size = self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)
        if size > MOST_BYTES:
            raise ValueError(f"a file of {size / 2**30:.1f} GiB; an image has at most 1 GiB")
        opened = Image.open(self.content if in_file else io.BytesIO(self.content), formats=FORMATS)  # type: ignore[arg-type]
        pixels, most = opened.width * opened.height, min(MOST_PIXELS, FREE_PIXELS + PIXELS_PER_BYTE * size)
        if pixels > most:
            problem = f"{opened.width} x {opened.height} pixels in {size} bytes; at most {most} are decoded"
        elif getattr(opened, "is_animated", False):
            problem = "several frames; save the one that is meant as an image of its own"
        else:
            return opened
        opened.close()
        raise ValueError(problem)


class ImageSource:
    """Images decoded when they are read.

    Args:
        images: all of them with labels, or all without.
        expected: the model's inputs: the first one says the channels and the size.
    Raises:
        DataError: the first image cannot be read, or the model does not take one image.
    """

    normalization: Normalization | None = None

    def __init__(
        self,
        images: list[EncodedImage],
        class_names: tuple[str, ...] | None,
        expected: list[ExpectedInput] | None,
    ) -> None:
        self._images = images
        self._mode, self._size = _wanted(expected)
        first = self._decode(images[0])
        self._mode = self._mode or ("L" if first.ndim == 2 else "RGB")
        self.fields: tuple[Field, ...] = (Field("images", "uint8", first.shape),)
        self.class_names: tuple[str, ...] | None = class_names
        self.has_labels = class_names is not None
        self.classes = None if class_names is None else len(class_names)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray) -> Raw:
        chosen = [self._images[i] for i in indices]
        check_allocation(len(chosen) * math.prod(self.fields[0].shape), f"{len(chosen)} decoded images")
        pixels = [self._decode(image) for image in chosen]
        for image, array in zip(chosen, pixels):
            if array.shape != self.fields[0].shape:
                raise DataError(
                    f"{image.name} has another size than the first image",
                    got=f"{list(array.shape)}",
                    expected=f"{list(self.fields[0].shape)}",
                    remedy="resize the images to one size",
                )
        return (np.stack(pixels),), self._labels(indices)

    def _labels(self, indices: np.ndarray) -> np.ndarray | None:
        if not self.has_labels:
            return None
        return np.array([self._images[i].label for i in indices], np.int64)

    def _decode(self, image: EncodedImage) -> np.ndarray:
        """uint8 [H, W, C], or [H, W] for grey."""
        try:
            with warnings.catch_warnings(), image.open() as opened:
                warnings.simplefilter("ignore")  # of odd tags in headers
                mode = self._mode or ("L" if opened.mode in ("1", "L", "I;16", "I") else "RGB")
                return np.asarray(self._resized(opened.convert(mode)))
        except Exception as problem:  # a damaged image can raise anything
            raise DataError(
                f"{image.name} cannot be read as an image",
                got="not an image, or a damaged one"
                if isinstance(problem, UnidentifiedImageError)
                else str(problem),
                remedy="remove or replace the file",
            ) from problem

    def _resized(self, picture: Image.Image) -> Image.Image:
        """As large as the model takes it."""
        return picture if self._size is None else resized(picture, self._size)


def resized(
    picture: Image.Image, size: tuple[int, int], how: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """To [height, width]: shorter side to 8/7 of the crop, then the crop at the centre.

    Raises:
        ValueError: so narrow that it would be scaled to more than `MOST_PIXELS`.
    """
    height, width = size
    if picture.size == (width, height):
        return picture
    scale = max(height / picture.height, width / picture.width) * 8 / 7
    scaled = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    if math.prod(scaled) > max(MOST_PIXELS, 2 * height * width):
        raise ValueError(f"{picture.width} x {picture.height} pixels, scaled to {scaled[0]} x {scaled[1]}")
    picture = picture.resize(scaled, how)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _wanted(expected: list[ExpectedInput] | None) -> tuple[str | None, tuple[int, int] | None]:
    """The mode and the [height, width] that the model's input says, as far as it says them."""
    if expected is None or len(expected) != 1 or len(expected[0].shape) != 4:
        return None, None
    _, channels, height, width = expected[0].shape
    if isinstance(channels, int) and channels not in CHANNELS:
        raise DataError(
            "the model does not take images",
            got=f"an input of {channels} channels",
            expected="1, 3 or 4 channels",
        )
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return MODES[channels] if isinstance(channels, int) else None, size


def open_image_folder(folder: Path, expected: list[ExpectedInput] | None) -> ImageSource:
    """Open a folder of class folders, or of images.

    Raises:
        DataError: no images, or images beside class folders.
    """
    loose, by_class = files_by_class(folder, SUFFIXES, "images", "image")
    if not by_class and not loose:
        raise DataError(
            f"{folder} holds no images",
            expected=f"one folder of images per class ({', '.join(s[1:] for s in SUFFIXES)})",
        )
    if loose:
        return ImageSource([EncodedImage(str(p), p, None) for p in loose], None, expected)
    images = [
        EncodedImage(str(path), path, label)
        for label, files in enumerate(by_class.values())
        for path in files
    ]
    return ImageSource(images, tuple(by_class), expected)


def image_files(folder: Path) -> list[Path]:
    """By name."""
    return files_in(folder, SUFFIXES)


KIND = Kind(
    "a folder of images by class",
    lambda asked: asked.folder is not None,
    lambda asked: open_image_folder(Path(asked.path), asked.expected),
)
