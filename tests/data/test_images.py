from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nncompress.data import open_data
from nncompress.errors import DataError
from nncompress.ir import InputSpec


def folder_of(tmp_path, sizes, classes=("ant", "bee")):
    rng = np.random.default_rng()
    pixels = []
    for label, name in enumerate(classes):
        (tmp_path / name).mkdir()
        for i, (height, width) in enumerate(sizes):
            array = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
            pixels.append((array, label))
    return pixels


def test_classes_are_numbered_alphabetically_and_pixels_kept(tmp_path, rgb32):
    pixels = folder_of(tmp_path, [(32, 32)] * 3, classes=("wasp", "ant"))
    dataset = open_data(str(tmp_path), rgb32)
    (batch,) = dataset.batches(10)
    assert dataset.class_names == ("ant", "wasp")
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    reference = np.stack([a for a, _ in pixels[3:] + pixels[:3]]).transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(batch.inputs[0], reference, rtol=1e-6)


def test_other_sizes_are_resized_and_cropped_to_the_models(tmp_path):
    folder_of(tmp_path, [(50, 40), (20, 90), (16, 16)])
    dataset = open_data(str(tmp_path), [InputSpec("x", "float32", ("batch", 3, 16, 16))])
    assert torch.cat([b.inputs[0] for b in dataset.batches(4)]).shape == (6, 3, 16, 16)


def test_grey_model_gets_grey(tmp_path):
    folder_of(tmp_path, [(8, 8)])
    (batch,) = open_data(str(tmp_path), [InputSpec("x", "float32", ("batch", 1, 8, 8))]).batches(4)
    assert batch.inputs[0].shape == (2, 1, 8, 8)


def test_images_without_class_folders_have_no_labels(tmp_path, rgb32):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    dataset = open_data(str(tmp_path), rgb32)
    assert not dataset.has_labels
    with pytest.raises(DataError, match="needs labels"):
        dataset.require_labels("top-1")


def test_without_a_model_different_sizes_are_refused(tmp_path):
    folder_of(tmp_path, [(8, 8), (9, 8)])
    with pytest.raises(DataError, match="another size"):
        list(open_data(str(tmp_path)).batches(4))


def test_folders_that_are_no_image_data_are_refused(tmp_path, rgb32):
    with pytest.raises(DataError, match="holds no images"):
        open_data(str(tmp_path), rgb32)
    folder_of(tmp_path, [(32, 32)] * 2)
    Image.new("RGB", (32, 32)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match="beside class folders"):
        open_data(str(tmp_path), rgb32)
    (tmp_path / "loose.png").unlink()
    (tmp_path / "bee" / "1.png").write_bytes((tmp_path / "bee" / "1.png").read_bytes()[:500])
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image"):
        list(open_data(str(tmp_path), rgb32).batches(4))
    with pytest.raises(DataError, match="does not take images"):
        open_data(str(tmp_path), [InputSpec("x", "float32", ("batch", 7, 32, 32))])
