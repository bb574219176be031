"""Images with boxes: where they lie once the image has the model's size, and files that say none."""

import json

import numpy as np
import pytest
from PIL import Image

from nncompress.data import open_data
from nncompress.errors import DataError
from nncompress.ir import InputSpec

MODEL = [InputSpec("x", "float32", ("batch", 3, 32, 32))]


def save(path, width, height, box=None):
    pixels = np.zeros((height, width, 3), np.uint8)
    if box is not None:
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = 255
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def yolo(tmp_path):
    save(tmp_path / "images/a.png", 64, 32, (16, 8, 32, 24))
    save(tmp_path / "images/b.png", 16, 16)
    save(tmp_path / "images/c.png", 16, 32, (4, 0, 12, 8))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("2 0.375 0.5 0.25 0.5\n0 0.5 0.5 1 1\n")
    (tmp_path / "labels/c.txt").write_text("1 0.5 0.125 0.5 0.25\n\n")
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    save(tmp_path / "images/a.png", 64, 32, (16, 8, 32, 24))
    save(tmp_path / "images/b.png", 16, 16)
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
        "categories": [{"id": 90, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [16, 8, 16, 16], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 64, 32], "iscrowd": 1},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


def test_boxes_lie_where_the_pixels_of_their_objects_lie(yolo):
    dataset = open_data(str(yolo), MODEL)
    (batch,) = dataset.batches(8)
    assert batch.labels.shape == (3, 2, 6)
    assert batch.labels[1, :, 0].tolist() == [-1, -1]
    for image, row, kind in ((0, 0, 2), (2, 0, 1)):
        found, left, top, right, bottom, crowd = batch.labels[image, row].tolist()
        assert (found, crowd) == (kind, 0)
        white = (batch.inputs[0][image].amin(0) > 0.75).nonzero()
        low, high = white.amin(0).tolist(), (white.amax(0) + 1).tolist()
        assert np.allclose([top, left, bottom, right], [*low, *high], atol=0.51)
    assert batch.labels[0, 1].tolist() == [0, 0, 8, 32, 24, 0]  # the whole image, between the padding


def test_the_annotations_of_coco_are_read(coco):
    dataset = open_data(str(coco), MODEL)
    (batch,) = dataset.batches(8)
    assert dataset.class_names == ("dog", "cat")
    assert batch.labels[0].tolist() == [[1, 8, 12, 16, 20, 0], [0, 0, 8, 32, 24, 1]]
    assert batch.labels[1, :, 0].tolist() == [-1, -1]


@pytest.mark.parametrize(
    "line",
    ["0 0.5 0.5 0.5", "x 0.5 0.5 0.5 0.5", "-1 0.5 0.5 0.5 0.5", "0 0.5 0.5 nan 0.5", "0 2 0.5 0.5 0.5"],
)
def test_a_line_that_says_no_box(line, yolo):
    (yolo / "labels/b.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(DataError, match="line 2 says no box"):
        open_data(str(yolo), MODEL)


def test_labels_without_an_image(yolo):
    (yolo / "labels/z.txt").write_text("")
    with pytest.raises(DataError, match="no image of its name"):
        open_data(str(yolo), MODEL)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.pop("categories"), "no file of COCO's annotations"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "no file of COCO's annotations"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, -4]), "no file of COCO's annotations"),
        (lambda c: c["annotations"][0].update(image_id=99), "no file of COCO's annotations"),
        (lambda c: c["annotations"][0].update(category_id=99), "no file of COCO's annotations"),
        (lambda c: c["annotations"].append(3), "no file of COCO's annotations"),
        (lambda c: c["images"].append({"id": 9, "file_name": "../c.png"}), "of which 1 are not beside it"),
        (lambda c: c["images"].clear(), "no file of COCO's annotations"),
    ],
)
def test_annotations_that_say_no_boxes(change, told, coco):
    content = json.loads((coco / "instances.json").read_text())
    change(content)
    (coco / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=told):
        open_data(str(coco), MODEL)
