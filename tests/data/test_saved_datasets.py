"""Folders of the `datasets` library, laid out by hand as it writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nncompress import extras
from nncompress.data import open_data
from nncompress.data.sources import arrow
from nncompress.errors import DataError, MissingExtraError

X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
Y = np.arange(7) % 3


def whole(dataset):
    (batch,) = dataset.batches(len(dataset))
    return batch


def written(folder: Path, files: list[str], **state: object) -> Path:
    folder.mkdir(parents=True)
    listed = {"_data_files": [{"filename": name} for name in files], **state}
    (folder / "state.json").write_text(json.dumps(listed))
    return folder


def saved(folder: Path, x: np.ndarray = X, y: np.ndarray = Y) -> Path:
    """In two files, of which the first holds two batches."""
    pyarrow = pytest.importorskip("pyarrow")
    written(folder, ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"])
    table = pyarrow.table({"x": list(x), "text": [f"text {i}" for i in range(len(x))], "label": y})
    for number, part in enumerate((table.slice(0, 4), table.slice(4))):
        with pyarrow.ipc.new_stream(folder / f"data-0000{number}-of-00002.arrow", table.schema) as stream:
            stream.write_table(part, max_chunksize=3)
    return folder


def test_its_columns_are_read_from_all_files_in_order(tmp_path):
    batch = whole(open_data(f"{saved(tmp_path / 'set')}?x=x&y=label"))
    assert (batch.inputs[0].numpy() == X).all()
    assert batch.labels.tolist() == Y.tolist()


def test_a_split_is_taken_by_its_name_and_none_is_guessed(tmp_path):
    saved(tmp_path / "set/train")
    saved(tmp_path / "set/validation", X[:5] + 1, Y[:5])
    (tmp_path / "set/dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    batch = whole(open_data(f"{tmp_path / 'set'}?split=validation&x=x&y=label"))
    assert (batch.inputs[0].numpy() == X[:5] + 1).all()
    with pytest.raises(DataError, match=r"has several splits[\s\S]*train, validation[\s\S]*\?split=train"):
        open_data(f"{tmp_path / 'set'}?x=x&y=label")


def test_parquet_files_are_taken_by_their_split(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "data").mkdir()
    parts = {"train-00000-of-00002": slice(4), "train-00001-of-00002": slice(4, 7), "test": slice(2)}
    parts |= {"train_extra": slice(3), "test[x]": slice(1)}
    for name, part in parts.items():
        table = pyarrow.table({"x": list(X[part]), "label": Y[part]})
        parquet.write_table(table, tmp_path / f"data/{name}.parquet")
    batch = whole(open_data(f"{tmp_path}?split=train&x=x"))
    assert (batch.inputs[0].numpy() == X).all()
    assert len(whole(open_data(f"{tmp_path}?split=test"))) == 2
    assert len(whole(open_data(f"{tmp_path}?split=test[x]"))) == 1
    (tmp_path / "data/train.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"has train-….parquet and train.parquet"):
        open_data(f"{tmp_path}?split=train&x=x")


def test_memory_is_asked_for_before_rows_are_taken(tmp_path, monkeypatch):
    sizes: list[int] = []
    monkeypatch.setattr(arrow, "check_allocation", lambda size, what: sizes.append(size))
    open_data(f"{saved(tmp_path / 'set')}?x=x&y=label")
    assert len(sizes) == 3
    assert sizes[-1] > 8 * X.nbytes


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda d: written(d, ["../../secret.arrow"]), "lists no files beside it"),
        (lambda d: written(d, []), "lists no files beside it"),
        (lambda d: written(d, ["a.arrow"], _indices_files=[{"filename": "i.arrow"}]), "flatten_indices"),
        (lambda d: d.mkdir() or (d / "state.json").write_text("{"), "cannot be read"),
        (
            lambda d: d.mkdir() or (d / "dataset_dict.json").write_text('{"splits": ["../a"]}'),
            "names no",
        ),
        (lambda d: d.mkdir() or (d / "dataset_dict.json").write_text('{"splits": []}'), "names no"),
        (lambda d: d.mkdir() or (d / "state.json").write_text('{"_data_files": 5}'), "lists no files"),
        (lambda d: written(d, [".."]), "lists no files beside it"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path, make, what):
    make(tmp_path / "set")
    with pytest.raises(DataError, match=what):
        open_data(str(tmp_path / "set"))


def test_damaged_files_are_told_by_name(tmp_path):
    folder = saved(tmp_path / "set")
    (folder / "data-00000-of-00002.arrow").write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"data-00000-of-00002\.arrow cannot be read as Arrow"):
        open_data(f"{folder}?x=x")


def test_a_pipe_is_no_file_of_samples(tmp_path):
    folder = saved(tmp_path / "set")
    (folder / "data-00001-of-00002.arrow").unlink()
    os.mkfifo(folder / "data-00001-of-00002.arrow")
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow cannot be read as Arrow"):
        open_data(f"{folder}?x=x")
    (tmp_path / "parquet").mkdir()
    os.mkfifo(tmp_path / "parquet/train-0.parquet")
    with pytest.raises(DataError, match=r"train-0\.parquet cannot be read as \.parquet"):
        open_data(f"{tmp_path / 'parquet'}?x=x")


def test_without_pyarrow_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    with pytest.raises(MissingExtraError, match=r"nncompress\[parquet\]"):
        open_data(str(written(tmp_path / "set", ["data.arrow"])))
