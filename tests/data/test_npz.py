from __future__ import annotations

import contextlib
import io
import os
import pickle
import tracemalloc
import zipfile
from shutil import disk_usage

import numpy as np
import pytest
import torch

from nncompress.data import open_data, source, stored_rows
from nncompress.data.sources import npz
from nncompress.data.sources.npz import open_npz
from nncompress.errors import DataError
from nncompress.ir import InputSpec


@pytest.fixture
def rng():
    return np.random.default_rng()


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def all_of(dataset, **options):
    batches = list(dataset.batches(7, **options))
    return torch.cat([b.inputs[0] for b in batches]), torch.cat([b.labels for b in batches])


def test_uint8_images_become_normalised_channels_first_floats(tmp_path, rng, rgb32):
    images = rng.integers(0, 256, (20, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 20)
    dataset = open_data(save(tmp_path / "d.npz", x=images, y=labels), rgb32, "0.1,0.2,0.3/0.5,0.6,0.7")
    x, y = all_of(dataset)
    reference = (images.astype(np.float64) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(x, reference.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert y.tolist() == labels.tolist()
    assert len(dataset) == 20


def test_imagenet_normalisation_centres_the_imagenet_mean(tmp_path, rgb32):
    images = np.full((2, 32, 32, 3), np.round(np.array([0.485, 0.456, 0.406]) * 255), np.uint8)
    x, _ = all_of(open_data(save(tmp_path / "d.npz", x=images, y=np.zeros(2, int)), rgb32, "imagenet"))
    assert x.abs().max() < 0.01  # half a step of 1/255, over the standard deviation


def test_mean_and_std_of_the_file_are_used_unless_told_otherwise(tmp_path, rng, rgb32):
    images = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    path = save(tmp_path / "d.npz", x=images, y=np.arange(4), mean=np.float32([0.5]), std=np.float32([0.25]))
    own, _ = all_of(open_data(path, rgb32))
    none, _ = all_of(open_data(path, rgb32, "none"))
    torch.testing.assert_close(own, (none - 0.5) / 0.25)
    assert str(open_data(path, rgb32).normalization) == "0.5/0.25"


def test_floats_are_normalised_only_from_the_scale_of_pixels(tmp_path, rng, rgb32):
    images = rng.random((4, 3, 32, 32), np.float32)
    path = save(tmp_path / "d.npz", x=images, y=np.arange(4))
    got, _ = all_of(open_data(path, rgb32, "0.5/0.25"))
    np.testing.assert_allclose(got, (images - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    path = save(tmp_path / "e.npz", x=(images - 0.5) / 0.25, y=np.arange(4))
    with pytest.raises(DataError, match="not on the scale of pixels"):
        all_of(open_data(path, rgb32, "0.5/0.25"))


def test_floats_pass_as_they_are_and_flat_models_take_images(tmp_path, rng, features4):
    x = rng.standard_normal((5, 4))
    got, _ = all_of(open_data(save(tmp_path / "d.npz", x=x, y=np.arange(5)), features4))
    np.testing.assert_array_equal(got, x.astype(np.float32))
    images = rng.integers(0, 256, (5, 2, 2), np.uint8)
    got, _ = all_of(open_data(save(tmp_path / "e.npz", x=images, y=np.arange(5)), features4))
    np.testing.assert_allclose(got, images.reshape(5, 4) / 255, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 3, 32, 32), (6, 32, 32, 3)])
def test_layout_of_uint8_images_is_recognised(tmp_path, rng, rgb32, shape):
    images = rng.integers(0, 256, shape, np.uint8)
    dataset = open_data(save(tmp_path / "d.npz", x=images, y=np.arange(6)), rgb32)
    assert dataset.inputs[0].shape == (3, 32, 32)
    assert open_data(save(tmp_path / "d.npz", x=images, y=np.arange(6))).inputs[0].shape == (3, 32, 32)


def test_several_inputs_by_number_or_by_name(tmp_path, rng):
    tokens, floats = rng.integers(0, 9, (6, 5)), rng.standard_normal((6, 2)).astype(np.float32)
    model = [
        InputSpec("ids", "int64", ("batch", 5)),
        InputSpec("extra", "float32", ("batch", 2)),
    ]
    for names in (("x0", "x1"), ("ids", "extra")):
        path = save(tmp_path / "d.npz", **dict(zip(names, (tokens, floats))))
        (batch,) = open_data(path, model).batches(10)
        assert batch.labels is None
        np.testing.assert_array_equal(batch.inputs[0], tokens)
        np.testing.assert_array_equal(batch.inputs[1], floats)


def test_limit_spreads_over_the_data_and_shuffling_is_seeded(tmp_path, features4):
    x = np.arange(100, dtype=np.float32)[:, None].repeat(4, 1)
    dataset = open_data(save(tmp_path / "d.npz", x=x, y=np.arange(100)), features4)
    assert all_of(dataset, limit=10)[1].tolist() == list(range(0, 100, 10))
    once, again = (all_of(dataset, shuffle_seed=3)[1].tolist() for _ in range(2))
    other = all_of(dataset, shuffle_seed=4)[1].tolist()
    assert once == again != other
    assert sorted(once) == list(range(100))
    limited, labels = all_of(dataset, limit=10, shuffle_seed=3)
    assert sorted(labels.tolist()) == list(range(0, 100, 10))
    assert limited[:, 0].tolist() == labels.tolist()  # records keep their labels


def test_fixed_batch_models_get_their_batch(tmp_path):
    path = save(tmp_path / "d.npz", x=np.zeros((10, 4), np.float32), y=np.arange(10))
    dataset = open_data(path, [InputSpec("x", "float32", (4, 4))])
    assert [len(b) for b in dataset.batches(64)] == [4, 4]


def test_regression_targets_stay_floats(tmp_path, features4):
    path = save(tmp_path / "d.npz", x=np.zeros((3, 4), np.float32), y=np.ones((3, 2)))
    (batch,) = open_data(path, features4).batches(5)
    assert batch.labels.dtype == torch.float32
    assert batch.labels.shape == (3, 2)


@pytest.mark.parametrize(
    ("arrays", "normalize", "says"),
    [
        ({"z": np.zeros((3, 4))}, None, "has no array x(?s:.*)by name: x"),
        ({"x": np.zeros((3, 5), np.float32)}, None, "another shape"),
        ({"x": np.zeros((3, 4), np.int64)}, None, "another dtype"),
        ({"x": np.array(["a", "b"])}, None, "does not hold numbers"),
        ({"x": np.zeros((0, 4), np.float32)}, None, "no samples"),
        ({"x": np.zeros((3, 4), np.float32), "y": np.zeros(2, int)}, None, "number of labels"),
        (
            {"x": np.zeros((3, 4), np.float32), "y": np.array([0, -1, 2])},
            None,
            "sample 1 has a negative label",
        ),
        ({"x": np.zeros((3, 4), np.float32), "y": np.array(["a"] * 3)}, None, "neither classes nor targets"),
        ({"x": np.float32([[0] * 4, [0, 0, np.nan, 0]])}, None, "sample 1 of x holds NaN"),
        ({"x": np.float32([[0] * 4, [0, 0, np.inf, 0]])}, None, "sample 1 of x holds infinity"),
        ({"x": np.zeros((3, 4), np.float32)}, "1,2/3", "one mean and one standard deviation"),
        ({"x": np.zeros((3, 4), np.float32)}, "0/0", "make no sense"),
        ({"x": np.zeros((3, 4), np.float32)}, "imagenett", "cannot be read"),
        ({"x": np.zeros((3, 4), np.float32)}, "1,2/3,4", "does not fit"),
        ({"x": np.zeros((3, 2, 2), np.uint8)}, "33/78", "scale of the pixels"),
        ({"x": np.zeros((3, 4), np.float32), "mean": np.zeros(1)}, None, "only one of mean and std"),
        ({"x": 3.0}, None, "single number"),
    ],
)
def test_what_does_not_fit_is_refused_at_opening(tmp_path, features4, arrays, normalize, says):
    with pytest.raises(DataError, match=says):
        open_data(save(tmp_path / "d.npz", **arrays), features4, normalize)


def test_int64_ids_beyond_the_models_int32_are_refused(tmp_path):
    path = save(tmp_path / "d.npz", x=np.array([[1], [2**40]]))
    dataset = open_data(path, [InputSpec("ids", "int32", ("batch", 1))])
    with pytest.raises(DataError, match="dtype cannot"):
        list(dataset.batches(2))


class Marker:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_objects_are_refused_unopened(tmp_path, features4):
    marker = tmp_path / "ran"
    array = np.array([Marker(marker)], dtype=object)
    np.savez(tmp_path / "d.npz", x=array)
    with pytest.raises(DataError, match="pickled Python objects"):
        open_data(str(tmp_path / "d.npz"), features4)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Marker(marker)))  # and the marker would have been seen
    assert marker.exists()


def test_headers_are_checked_before_memory_is_allocated(tmp_path, features4):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 4)}
    )
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    with pytest.raises(DataError, match="header of x does not match"):
        open_data(str(tmp_path / "d.npz"), features4)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x80\x04."])
def test_other_files_are_refused(tmp_path, features4, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
        open_data(str(tmp_path / "d.npz"), features4)


def test_a_truncated_archive_is_refused(tmp_path, features4):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.random.default_rng().standard_normal((100, 4)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError):
        open_data(str(path), features4)


@pytest.mark.parametrize("spec", ["missing.npz", "nosuch:dir:x", "no/folder"])
def test_data_that_is_not_there_is_refused(spec):
    with pytest.raises(DataError):
        open_data(spec)


@pytest.mark.parametrize("seed", range(40))
def test_a_file_damaged_anywhere_is_read_or_refused(tmp_path, features4, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=rng.standard_normal((9, 4)).astype(np.float32), y=rng.integers(0, 3, 9))
    content = bytearray(path.read_bytes())
    for place in rng.integers(0, len(content), 4):
        content[place] = rng.integers(0, 256)
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        list(open_data(str(path), features4).batches(4))


# --- what stays in the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64, np.int32, np.bool_, ">f4", "F order"])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("in_memory", [0, 2**28])
def test_records_read_from_the_file_are_those_of_the_array(
    tmp_path, rng, dtype, write, in_memory, monkeypatch
):
    monkeypatch.setattr(npz, "UNPACKED", in_memory)
    x = rng.integers(0, 2, (50, 3, 5))
    x = np.asfortranarray(x.astype(np.float32)) if dtype == "F order" else x.astype(dtype)
    write(tmp_path / "d.npz", y=np.arange(50), x=x)
    opened = open_npz(tmp_path / "d.npz", None)
    for rows in (rng.integers(0, 50, 20), np.arange(10, 30), np.array([49, 0, 0, 1, 2]), np.array([], int)):
        (got,), labels = opened.read(rows)
        np.testing.assert_array_equal(got, x[rows])
        assert labels.tolist() == rows.tolist()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_opening_and_reading_takes_the_memory_of_a_batch(tmp_path, write, monkeypatch):
    monkeypatch.setattr(npz, "UNPACKED", 2**20)
    monkeypatch.setattr(stored_rows, "CHUNK", 2**20)
    x = np.zeros((4000, 32, 32, 3), np.uint8)  # 12.3 MB
    write(tmp_path / "d.npz", x=x)
    del x
    tracemalloc.start()  # numpy's arrays are among what it counts
    try:
        dataset = open_data(str(tmp_path / "d.npz"))
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.reset_peak()
        for batch in dataset.batches(16):
            assert batch.inputs[0].shape == (16, 3, 32, 32)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_a_compressed_array_that_is_damaged_or_has_no_room_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "UNPACKED", 0)
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[4000] ^= 255
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        open_data(str(tmp_path / "e.npz"))
    full = disk_usage(tmp_path)._replace(free=9000)
    monkeypatch.setattr(stored_rows, "disk_usage", lambda folder: full)
    with pytest.raises(DataError, match="no room to be unpacked") as refused:
        open_data(str(path))
    assert "TMPDIR=" in str(refused.value)


def test_damage_that_leaves_numbers_is_seen_by_the_checksum(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((50, 4), np.float32))
    content = path.read_bytes()
    place = content.rindex(bytes(50))  # in the array
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(DataError, match="CRC"):
        open_data(str(path))


@pytest.mark.parametrize("how", ["written anew", "cut short", "replaced", "gone"])
def test_a_file_that_changes_while_it_is_read_is_said(tmp_path, how):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((50, 4), np.float32))
    batches = open_data(str(path)).batches(10)
    next(batches)
    if how == "cut short":
        os.truncate(path, 300)
    elif how == "gone":
        path.unlink()
    else:
        np.savez(tmp_path / "e.npz", x=np.ones((50, 4), np.float32))
        if how == "replaced":
            (tmp_path / "e.npz").replace(path)
        else:
            path.write_bytes((tmp_path / "e.npz").read_bytes())
            os.utime(path, (0, 0))  # clocks of file systems are coarse
    with pytest.raises(DataError, match=r"written to while|cannot be read"):
        next(batches)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_labels_of_pixels_and_targets_come_with_their_records(tmp_path, rng, write, monkeypatch):
    monkeypatch.setattr(source, "PIECE", 100)
    x = np.zeros((30, 4), np.float32)
    for y, classes in (
        (rng.integers(-1, 5, (30, 6, 4)).astype(np.int16), 5),  # several pieces
        (np.full((30, 2), -1), 0),
        (np.arange(30, dtype=np.uint8), 30),
        (np.arange(30)[:, None], 30),
        (rng.random((30, 6)), None),
    ):
        write(tmp_path / "d.npz", x=x, y=y)
        opened = open_npz(tmp_path / "d.npz", None)
        rows = rng.integers(0, 30, 7)
        wanted = y[rows, 0] if y.shape[1:] == (1,) else y[rows]
        got = opened.read(rows)[1]
        np.testing.assert_array_equal(got, wanted.astype(np.float32 if classes is None else np.int64))
        assert got.dtype in (np.float32, np.int64)
        assert opened.classes == classes


def test_a_wrong_label_is_named_in_whichever_piece_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PIECE", 100)
    y = np.zeros((30, 6, 4), np.float32)
    y[27, 3, 3] = np.nan
    np.savez(tmp_path / "d.npz", x=np.zeros((30, 4), np.float32), y=y)
    with pytest.raises(DataError, match="sample 27 of the labels"):
        open_data(str(tmp_path / "d.npz"))


def test_what_lacks_an_input_is_told_which(tmp_path):
    path = save(tmp_path / "d.npz", ids=np.zeros((3, 4), np.int64))
    with pytest.raises(DataError, match=r"some inputs(?s:.*)mask, too(?s:.*)store mask=\.\.\."):
        open_data(path, [InputSpec("ids", "int64", ("batch", 4)), InputSpec("mask", "int64", ("batch", 4))])
