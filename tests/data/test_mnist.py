from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from nncompress.data import open_data
from nncompress.data.sources.mnist import read_idx
from nncompress.errors import DataError
from nncompress.ir import InputSpec


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def split():
    rng = np.random.default_rng()
    return rng.integers(0, 256, (5, 6, 7), np.uint8), rng.integers(0, 10, 5, dtype=np.uint8)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("option", "prefix"), [("", "t10k"), ("?split=train", "train"), ("?split=test", "t10k")]
)
def test_reads_what_was_written(tmp_path, split, zipped, option, prefix):
    images, labels = split
    for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        content = gzip.compress(idx(array)) if zipped else idx(array)
        (tmp_path / f"{prefix}-{name}{'.gz' if zipped else ''}").write_bytes(content)
    (batch,) = open_data(
        f"mnist:{tmp_path}{option}", [InputSpec("x", "float32", ("batch", 1, 6, 7))]
    ).batches(9)
    np.testing.assert_allclose(batch.inputs[0][:, 0], images / 255, rtol=1e-6)
    assert batch.labels.tolist() == labels.tolist()


def test_damaged_idx_files_are_refused(tmp_path, split):
    good = idx(split[0])
    for content, says in (
        (good[:-1], "another size"),
        (good + b"x", "another size"),
        (b"", "not an IDX file"),
        (b"\0\0\x0d\3" + good[4:], "not an IDX file"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**20, 2**20), "another size"),
    ):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(DataError, match=says):
            read_idx(tmp_path / "f", 3)
    (tmp_path / "f.gz").write_bytes(gzip.compress(good)[:-10])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "f.gz", 3)


def test_a_missing_file_or_an_unknown_option_is_refused(tmp_path):
    with pytest.raises(DataError, match="no t10k-images"):
        open_data(f"mnist:{tmp_path}")
    with pytest.raises(DataError, match="unknown option"):
        open_data(f"mnist:{tmp_path}?split=val")
