"""Detection: images with boxes, as YOLO and COCO keep them.

    FOLDER/images/0001.jpg, FOLDER/labels/0001.txt    a line per object, "class x y width height": centre and
                                                      size as shares of the image; no file: no object
    FOLDER/instances.json, FOLDER/*.jpg or images/    COCO: images, annotations, categories

A sample's label is a float32 table [most, 6]: class, left, top, right, bottom in pixels of the model's input,
and 1 where a box is a crowd, which no answer is held against; rows beyond its objects have class -1. Classes
of COCO are numbered from 0 in the order of their ids. Images are scaled to fit and padded with grey on both
sides, as detectors are trained ("letterbox"), and boxes with them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nncompress.data.fit import ExpectedInput
from nncompress.data.kind import Asked, Kind
from nncompress.data.source import check_allocation
from nncompress.data.sources.pictures.images import EncodedImage, ImageSource, image_files
from nncompress.errors import DataError
from nncompress.files.bounded_text import Unreadable, check_regular, read_json, read_text

IMAGES, LABELS = "images", "labels"
GREY = 114  # of the padding, as YOLO has it
COLUMNS = 6
_MOST_LABELS = 2**20  # bytes of one image's file
_MOST_ANNOTATIONS = 2**30  # bytes, and with what Python makes of each no more than the memory there is
_IN_MEMORY = 24  # bytes of lists for one of their text, "[],[],"
_MOST_CLASSES = 2**20


@dataclass(frozen=True)
class Boxes:
    """The objects of one image.

    Attributes:
        rows: float64 [objects, 6], as a sample's label, but in the image's own pixels.
    """

    rows: np.ndarray


class BoxSource(ImageSource):
    """Images, and for each the table of its boxes.

    Args:
        boxes: of each image.
    Raises:
        DataError: as `ImageSource`.
    """

    def __init__(
        self,
        images: list[EncodedImage],
        boxes: list[Boxes],
        class_names: tuple[str, ...] | None,
        expected: list[ExpectedInput] | None,
    ) -> None:
        super().__init__(images, None, expected)
        self._boxes = boxes
        self._most = max(1, *(len(each.rows) for each in boxes))
        self.has_labels = True
        self.class_names = class_names
        greatest = max((int(each.rows[:, 0].max()) for each in boxes if len(each.rows)), default=-1)
        self.classes = len(class_names) if class_names else greatest + 1

    def _resized(self, picture: Image.Image) -> Image.Image:
        if self._size is None:
            return picture
        height, width = self._size
        scale, left, top = _placed(picture.size, self._size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        grey: Any = GREY if picture.mode == "L" else (GREY,) * len(picture.getbands())
        padded = Image.new(picture.mode, (width, height), grey)
        padded.paste(picture.resize(size, Image.Resampling.BILINEAR), (round(left), round(top)))
        return padded

    def _labels(self, indices: np.ndarray) -> np.ndarray:
        check_allocation(len(indices) * self._most * COLUMNS * 4, f"a table of {self._most} boxes an image")
        tables = np.full((len(indices), self._most, COLUMNS), -1.0, np.float32)
        for table, index in zip(tables, indices):
            rows = self._boxes[index].rows.copy()
            if self._size is not None:
                with self._images[index].open() as opened:
                    scale, left, top = _placed(opened.size, self._size)
                rows[:, 1:5] = rows[:, 1:5] * scale + (left, top, left, top)
            table[: len(rows)] = rows
        return tables


def _placed(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float]:
    """(scale, left, top) of an image [width, height] on the model's [height, width]."""
    scale = min(wanted[1] / size[0], wanted[0] / size[1])
    return scale, (wanted[1] - size[0] * scale) / 2, (wanted[0] - size[1] * scale) / 2


def annotations_of(folder: Path) -> Path | None:
    """The file of COCO's annotations in a folder: the only .json beside images."""
    found = sorted(path for path in folder.glob("*.json") if path.is_file())
    return found[0] if len(found) == 1 and _pictures(folder) else None


def is_yolo_folder(folder: Path) -> bool:
    """It has both folders, which a folder of classes called so would need to have and no other."""
    return {path.name for path in folder.iterdir() if path.is_dir()} == {IMAGES, LABELS}


def open_yolo_folder(folder: Path, expected: list[ExpectedInput] | None) -> BoxSource:
    """Open a folder of images and, for each, a text file of its boxes.

    Raises:
        DataError: there are no images, or a file says no boxes.
    """
    paths = image_files(folder / IMAGES)
    if not paths:
        raise DataError(f"{folder / IMAGES} holds no images")
    files = {path.stem: path for path in sorted((folder / LABELS).glob("*.txt"))}
    alone = sorted(set(files) - {path.stem for path in paths})
    if alone:
        raise DataError(f"{files[alone[0]]} has no image of its name in {folder / IMAGES}")
    images = [EncodedImage(str(path), path, None) for path in paths]
    boxes = [_yolo(files.get(path.stem), image) for path, image in zip(paths, images)]
    return BoxSource(images, boxes, None, expected)


def _yolo(file: Path | None, image: EncodedImage) -> Boxes:
    if file is None:
        return Boxes(np.empty((0, COLUMNS)))
    try:
        lines = [line for line in read_text(file, _MOST_LABELS).splitlines() if line.strip()]
    except Unreadable as problem:
        raise DataError(f"{file} cannot be read", got=str(problem)) from problem
    try:
        with image.open() as opened:
            width, height = opened.size
    except Exception as problem:  # a damaged image can raise anything
        raise DataError(f"{image.name} cannot be read as an image", got=str(problem)[:200]) from problem
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            name, x, y, w, h = line.split()
            kind, centre = int(name), [float(value) for value in (x, y, w, h)]
        except ValueError:
            kind, centre = -1, []
        if not (0 <= kind < _MOST_CLASSES and all(0 <= value <= 1 for value in centre)):
            raise DataError(
                f"{file}, line {number} says no box",
                got=line[:100],
                expected="class x y width height, the last four from 0 to 1",
            )
        across, down, wide, high = (v * size for v, size in zip(centre, (width, height, width, height)))
        rows.append((kind, across - wide / 2, down - high / 2, across + wide / 2, down + high / 2, 0))
    return Boxes(np.array(rows, np.float64).reshape(-1, COLUMNS))


def open_coco_folder(folder: Path, file: Path, expected: list[ExpectedInput] | None) -> BoxSource:
    """Open the images that a file of annotations lists.

    Raises:
        DataError: the file is none of COCO's, or an image is missing.
    """
    try:
        check_allocation(_IN_MEMORY * check_regular(file), str(file))
        content = read_json(file, _MOST_ANNOTATIONS)
        listed = {each["id"]: each["file_name"] for each in content["images"]}
        categories = sorted(content["categories"], key=lambda each: each["id"])
        number = {each["id"]: place for place, each in enumerate(categories)}
        names = tuple(str(each["name"]) for each in categories)
        rows: dict[Any, list[tuple[float, ...]]] = defaultdict(list)
        for each in content["annotations"]:
            left, top, width, height = map(float, each["bbox"])
            box = (left, top, left + width, top + height)
            if not all(map(math.isfinite, box)) or min(width, height) < 0 or each["image_id"] not in listed:
                raise ValueError(f"annotation {each.get('id')} is no box of a listed image")
            crowd = 1.0 if each.get("iscrowd") else 0.0
            rows[each["image_id"]].append((number[each["category_id"]], *box, crowd))
    except Unreadable as problem:
        raise DataError(f"{file} cannot be read", got=str(problem)) from problem
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(
            f"{file} is no file of COCO's annotations",
            got=f"{type(problem).__name__}: {problem}"[:200],
            expected="images, annotations with bbox, and categories",
        ) from problem
    there = {path.name: path for path in _pictures(folder)}
    missing = [name for name in listed.values() if Path(str(name)).name not in there]
    if missing or not listed:
        raise DataError(
            f"{file} lists {len(listed)} images, of which {len(missing)} are not beside it or in {IMAGES}/",
            got=", ".join(map(str, missing[:3])),
        )
    paths = {identity: there[Path(str(name)).name] for identity, name in listed.items()}
    images = [EncodedImage(str(path), path, None) for path in paths.values()]
    boxes = [Boxes(np.array(rows[each], np.float64).reshape(-1, COLUMNS)) for each in paths]
    return BoxSource(images, boxes, names, expected)


def _pictures(folder: Path) -> list[Path]:
    inside = folder / IMAGES
    return image_files(inside if inside.is_dir() else folder)


def _open_annotated(asked: Asked) -> BoxSource:
    folder = Path(asked.path)
    annotations = annotations_of(folder)
    assert annotations is not None, "claimed"
    return open_coco_folder(folder, annotations, asked.expected)


YOLO = Kind(
    "a folder of images/ and labels/ (YOLO)",
    lambda asked: asked.folder is not None and is_yolo_folder(asked.folder),
    lambda asked: open_yolo_folder(Path(asked.path), asked.expected),
)
COCO = Kind(
    "a folder of images and COCO's annotations",
    lambda asked: asked.folder is not None and annotations_of(asked.folder) is not None,
    _open_annotated,
)
