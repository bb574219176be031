from __future__ import annotations

import contextlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from nncompress.data import open_data
from nncompress.data.sources.cifar10 import read_batch
from nncompress.errors import DataError

NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_official_batches_come_back_as_written(tmp_path, rgb32, protocol):
    rng = np.random.default_rng()
    everything = []
    for i in range(1, 6):
        data = rng.integers(0, 256, (4, 3072), np.uint8)
        labels = rng.integers(0, 10, 4).tolist()
        everything.append((data, labels))
        batch = {
            b"data": data,
            b"labels": labels,
            b"batch_label": b"training batch",
            b"filenames": [b"a.png"] * 4,
        }
        (tmp_path / f"data_batch_{i}").write_bytes(pickle.dumps(batch, protocol))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": NAMES}, protocol))
    dataset = open_data(f"cifar10:{tmp_path}?split=train", rgb32)
    (batch,) = dataset.batches(100)
    reference = np.concatenate([d for d, _ in everything]).reshape(20, 3, 32, 32) / 255
    np.testing.assert_allclose(batch.inputs[0], reference, rtol=1e-6)
    assert batch.labels.tolist() == [n for _, labels in everything for n in labels]
    assert dataset.class_names == tuple(n.decode() for n in NAMES)


class Runs:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class AsksNumpy:
    """Asks for a numpy function that an array's pickle does not need."""

    def __reduce__(self):
        return np.fromfile, ("/etc/hostname",)


@pytest.mark.parametrize(
    "hostile", ["code", "numpy function", "object array", "float array", "truncated", "empty"]
)
def test_hostile_and_damaged_batches_are_refused(tmp_path, hostile):
    marker = tmp_path / "ran"
    content = {
        "code": lambda: pickle.dumps({b"data": Runs(marker)}),
        "numpy function": lambda: pickle.dumps({b"data": AsksNumpy()}),
        "object array": lambda: pickle.dumps({b"data": np.array([Runs(marker)], object)}),
        "float array": lambda: pickle.dumps({b"data": np.zeros((1, 3072))}),
        "truncated": lambda: pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)})[:-100],
        "empty": lambda: b"",
    }[hostile]()
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="not an official CIFAR-10 batch"):
        open_data(f"cifar10:{tmp_path}")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "1 labels for 2 images"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}, "not class numbers"),
        ({b"data": np.zeros((2, 9), np.uint8), b"labels": [1, 1]}, "not a CIFAR-10 batch"),
        ({b"labels": [1, 1]}, "not a CIFAR-10 batch"),
        ([1], "not an official"),
    ],
)
def test_batches_of_other_contents_are_refused(tmp_path, batch, says):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match=says):
        open_data(f"cifar10:{tmp_path}")


def test_an_arrays_shape_must_match_its_bytes(tmp_path):
    honest = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}, 2)
    lying = honest.replace(b"K\x02M\x00\x0c", b"K\x03M\x00\x0c")  # the shape's 2 becomes 3
    assert lying != honest
    (tmp_path / "test_batch").write_bytes(lying)
    with pytest.raises(DataError, match="cannot reshape"):
        read_batch(tmp_path / "test_batch")


def test_a_pickle_cannot_ask_for_more_memory_than_it_has_bytes(tmp_path):
    for greedy in (b"\x80\x02}r\xff\xff\xff\x7f.", b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x."):
        (tmp_path / "test_batch").write_bytes(greedy)
        with pytest.raises(DataError, match="not an official CIFAR-10 batch"):
            read_batch(tmp_path / "test_batch")


@pytest.mark.parametrize("seed", range(40))
def test_a_batch_damaged_anywhere_is_read_or_refused(tmp_path, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}, 2))
    for place in rng.integers(0, 200 if seed % 2 else len(content), 3):
        content[place] = rng.integers(0, 256)
    (tmp_path / "test_batch").write_bytes(content)
    with contextlib.suppress(DataError):
        open_data(f"cifar10:{tmp_path}")


def tar_of(path, members):
    with tarfile.open(path, "w:xz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def test_tars_of_images_by_class(tmp_path, rgb32):
    images = np.random.default_rng().integers(0, 256, (4, 32, 32, 3), np.uint8)
    names = ("dog/0.png", "cat/1.png", "cat/0.png", "./dog/1.png")
    tar_of(tmp_path / "test.tar.xz", [(n, png(i)) for n, i in zip(names, images)])
    dataset = open_data(f"cifar10:{tmp_path}", rgb32)
    (batch,) = dataset.batches(9)
    assert dataset.class_names == ("cat", "dog")
    assert batch.labels.tolist() == [0, 0, 1, 1]
    cats = images[[2, 1]].transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(batch.inputs[0][:2], cats, rtol=1e-6)


def test_tars_without_classes_or_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="no CIFAR-10 test split"):
        open_data(f"cifar10:{tmp_path}")
    path = tmp_path / "test.tar.xz"
    tar_of(path, [("readme.txt", b"hello")])
    with pytest.raises(DataError, match="no images"):
        open_data(f"cifar10:{tmp_path}")
    tar_of(path, [("a.png", b"hello")])
    with pytest.raises(DataError, match="no class folder"):
        open_data(f"cifar10:{tmp_path}")
    tar_of(path, [("cat/a.png", b"hello")])
    with pytest.raises(DataError, match="cannot be read as an image"):
        open_data(f"cifar10:{tmp_path}")
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(DataError, match="cannot be read as a tar"):
        open_data(f"cifar10:{tmp_path}")
