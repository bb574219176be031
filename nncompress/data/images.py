"""A folder with one folder of images per class; classes are numbered in alphabetical order.

Images without class folders have no labels. Images of another size than the model takes are resized so
that the crop is the usual 7/8 of the shorter side (224 of 256), then cropped at the centre.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nncompress.data.fit import CHANNELS, ExpectedInput
from nncompress.data.normalization import Normalization
from nncompress.data.source import Field, Raw
from nncompress.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class EncodedImage:
    """One image still to be decoded: its name for errors, its bytes when asked, its class."""

    name: str
    load: Callable[[], bytes]
    label: int | None


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

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray) -> Raw:
        chosen = [self._images[i] for i in indices]
        pixels = [self._decode(image) for image in chosen]
        for image, array in zip(chosen, pixels):
            if array.shape != self.fields[0].shape:
                raise DataError(
                    f"{image.name} has another size than the first image",
                    got=f"{list(array.shape)}",
                    expected=f"{list(self.fields[0].shape)}",
                    remedy="resize the images to one size",
                )
        labels = np.array([image.label for image in chosen], np.int64) if self.has_labels else None
        return (np.stack(pixels),), labels

    def _decode(self, image: EncodedImage) -> np.ndarray:
        """uint8 [H, W, C], or [H, W] for grey."""
        try:
            with Image.open(io.BytesIO(image.load())) as opened:
                mode = self._mode or ("L" if opened.mode in ("1", "L", "I;16", "I") else "RGB")
                picture = opened.convert(mode)
        except (
            UnidentifiedImageError,
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as problem:
            raise DataError(
                f"{image.name} cannot be read as an image",
                got="not an image, or a damaged one"
                if isinstance(problem, UnidentifiedImageError)
                else str(problem),
                remedy="remove or replace the file",
            ) from problem
        return np.asarray(picture if self._size is None else _resized(picture, self._size))


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """To [height, width]: shorter side to 8/7 of the crop, then the crop at the centre."""
    height, width = size
    if picture.size == (width, height):
        return picture
    scale = max(height / picture.height, width / picture.width) * 8 / 7
    scaled = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    picture = picture.resize(scaled, Image.Resampling.BILINEAR)
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
    classes = sorted(d.name for d in folder.iterdir() if d.is_dir() and _image_files(d))
    loose = _image_files(folder)
    if not classes and not loose:
        raise DataError(
            f"{folder} holds no images",
            expected=f"one folder of images per class ({', '.join(s[1:] for s in SUFFIXES)})",
        )
    if classes and loose:
        raise DataError(
            f"{folder} holds images beside class folders",
            got=f"{loose[0].name} and {len(classes)} class folders",
            remedy="move every image into the folder of its class",
        )
    if loose:
        return ImageSource([EncodedImage(str(p), p.read_bytes, None) for p in loose], None, expected)
    images = [
        EncodedImage(str(path), path.read_bytes, label)
        for label, name in enumerate(classes)
        for path in _image_files(folder / name)
    ]
    return ImageSource(images, tuple(classes), expected)


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
