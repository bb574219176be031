"""Segmentation: a folder with `images` and `masks`, whose files have the same names but for the suffix.

A mask is an image whose pixels are the numbers of classes (grey, or a palette's indices); 255 is left out by
`--metric miou`. It is resized and cropped as its image is, without mixing classes.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from nncompress.data.fit import ExpectedInput
from nncompress.data.kind import Kind
from nncompress.data.sources.pictures.images import EncodedImage, ImageSource, image_files, resized
from nncompress.errors import DataError

IMAGES, MASKS = "images", "masks"


class MaskSource(ImageSource):
    """Images, and for each a mask int64 [H, W] of the same size.

    Raises:
        DataError: as `ImageSource`, or the first mask is none.
    """

    def __init__(
        self, images: list[EncodedImage], masks: list[EncodedImage], expected: list[ExpectedInput] | None
    ) -> None:
        super().__init__(images, None, expected)
        self._masks = masks
        self.has_labels = True
        self._mask(0)

    def _labels(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._mask(int(i)) for i in indices])

    def _mask(self, index: int) -> np.ndarray:
        mask = self._masks[index]
        try:
            with warnings.catch_warnings(), mask.open() as opened:
                warnings.simplefilter("ignore")
                if opened.mode not in ("L", "P", "1"):
                    raise ValueError(f"an image of mode {opened.mode}: grey or a palette says classes")
                with self._images[index].open() as image:
                    if image.size != opened.size:
                        raise ValueError(f"{opened.size}, and its image is {image.size}")
                picture = Image.fromarray(
                    np.asarray(opened, np.uint8)
                )  # a palette's indices, not its colours
        except Exception as problem:  # a damaged image can raise anything
            raise DataError(
                f"{mask.name} cannot be read as a mask", got=str(problem)[:200], remedy="mend or remove it"
            ) from problem
        if self._size is not None:
            picture = resized(picture, self._size, Image.Resampling.NEAREST)
        return np.asarray(picture).astype(np.int64)


def is_mask_folder(folder: Path) -> bool:
    """It has both folders, which a folder of classes called so would need to have and no other."""
    return {p.name for p in folder.iterdir() if p.is_dir()} == {IMAGES, MASKS}


def open_mask_folder(folder: Path, expected: list[ExpectedInput] | None) -> MaskSource:
    """Open a folder of images and their masks.

    Raises:
        DataError: there are none, or one has no mask.
    """
    images = image_files(folder / IMAGES)
    masks = {path.stem: path for path in image_files(folder / MASKS)}
    if not images:
        raise DataError(f"{folder / IMAGES} holds no images")
    missing = [path.name for path in images if path.stem not in masks]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(images)} images have no mask",
            got=", ".join(missing[:3]),
            expected=f"{MASKS}/{Path(missing[0]).stem}.png",
        )
    found = [masks[path.stem] for path in images]
    return MaskSource(_encoded(images), _encoded(found), expected)


def _encoded(paths: list[Path]) -> list[EncodedImage]:
    return [EncodedImage(str(path), path, None) for path in paths]


KIND = Kind(
    "a folder of images/ and masks/",
    lambda asked: asked.folder is not None and is_mask_folder(asked.folder),
    lambda asked: open_mask_folder(Path(asked.path), asked.expected),
)
