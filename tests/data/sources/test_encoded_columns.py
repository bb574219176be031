"""Pictures and sounds in columns, laid out by hand as the `datasets` library writes them."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nncompress.data import open_data
from nncompress.errors import DataError
from nncompress.ir import InputSpec

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PIXELS = np.random.default_rng(0).integers(0, 255, (7, 8, 8, 3), np.uint8)
NAMES = ["cat", "dog", "eel"]
Y = [0, 1, 2, 0, 1, 2, 0]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav(numbers: np.ndarray, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(rate)
        sound.writeframes((numbers * 32767).astype("<i2").tobytes())
    return file.getvalue()


def table(column: str, files: list[bytes], feature: dict, labels: list | None = None, **more: list):
    of_labels = {"label": {"names": NAMES, "_type": "ClassLabel"}}
    info = {"info": {"features": {column: feature, **of_labels}}}
    columns = {"id": list(range(len(files))), column: [{"bytes": f, "path": "a/b.x"} for f in files], **more}
    if labels is not None:
        columns["label"] = labels
    return pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(info)})


def saved(folder: Path, rows, form: str) -> str:
    folder.mkdir()
    if form == "parquet":
        parquet.write_table(rows, folder / "train-00000-of-00001.parquet")
    else:
        with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", rows.schema) as stream:
            stream.write_table(rows, max_chunksize=3)
        listed = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (folder / "state.json").write_text(json.dumps(listed))
    return str(folder)


def whole(dataset):
    (batch,) = dataset.batches(len(dataset))
    return batch


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_pictures_are_decoded_and_classes_have_their_names(tmp_path, form):
    spec = saved(tmp_path / "set", table("image", [png(p) for p in PIXELS], {"_type": "Image"}, Y), form)
    data = open_data(spec, [InputSpec("x", "float32", ("batch", 3, 8, 8))])
    batch = whole(data)
    np.testing.assert_allclose(batch.inputs[0].numpy(), PIXELS.transpose(0, 3, 1, 2) / 255, atol=1e-7)
    assert batch.labels.tolist() == Y
    assert list(data.class_names) == NAMES
    assert whole(open_data(f"{spec}?half=1")).labels.numel() == 3


def test_a_picture_in_a_riff_file_is_no_sound(tmp_path):
    file = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(file, "WEBP", lossless=True)
    spec = saved(tmp_path / "set", table("image", [file.getvalue()], {"_type": "Image"}), "arrow")
    batch = whole(open_data(spec, [InputSpec("x", "float32", ("batch", 3, 8, 8))]))
    np.testing.assert_allclose(batch.inputs[0][0].numpy(), PIXELS[0].transpose(2, 0, 1) / 255, atol=1e-7)


def test_inputs_that_are_columns_by_their_names_are_read_beside_bytes(tmp_path):
    rows = table("raw", [b"no picture"] * 4, {}, Y[:4], ids=[[1, 2], [3, 4], [5, 6], [7, 8]])
    batch = whole(
        open_data(saved(tmp_path / "set", rows, "arrow"), [InputSpec("ids", "int64", ("batch", 2))])
    )
    assert batch.inputs[0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert batch.labels.tolist() == Y[:4]


def test_a_part_of_a_table_without_a_column_is_told(tmp_path):
    spec = saved(tmp_path / "set", pyarrow.table({"x": [1.0, 2.0], "label": [0, 1]}), "parquet")
    parquet.write_table(pyarrow.table({"x": [1.0, 2.0]}), tmp_path / "set" / "train-00001-of-00001.parquet")
    with pytest.raises(DataError, match="a part of the table has no column 'label'"):
        open_data(f"{spec}?x=x&y=label")


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_sounds_are_read_and_may_have_no_labels(tmp_path, form):
    sounds = np.random.default_rng(1).uniform(-1, 1, (4, 20))
    rows = table("audio", [wav(s) for s in sounds], {"sampling_rate": 8000, "_type": "Audio"})
    batch = whole(open_data(saved(tmp_path / "set", rows, form), [InputSpec("x", "float32", ("batch", 20))]))
    np.testing.assert_allclose(batch.inputs[0].numpy(), sounds, atol=1e-4)
    assert batch.labels is None


def test_the_rate_that_the_column_states_is_not_made_up(tmp_path):
    rows = table("audio", [wav(np.zeros(9))], {"sampling_rate": 16000, "_type": "Audio"})
    with pytest.raises(DataError, match=r"another sample rate(.|\n)*8000(.|\n)*16000"):
        open_data(saved(tmp_path / "set", rows, "arrow"))


def test_amounts_text_and_bytes_alone_are_columns_too(tmp_path):
    files = [png(p) for p in PIXELS]
    rows = pyarrow.table({"x": files, "y": [0.5] * 7, "kind": list("abcabca")})
    parquet.write_table(rows, tmp_path / "t.parquet")
    assert whole(open_data(f"{tmp_path}/t.parquet?x=x&y=y")).labels.tolist() == [0.5] * 7
    assert open_data(f"{tmp_path}/t.parquet?x=x&y=kind").class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"files": [b"", *[png(p) for p in PIXELS[1:]]]}, "", "sample 1 holds no bytes"),
        ({"files": [png(PIXELS[0]), *[b"junk"] * 6]}, "", "sample 2, cannot be read as an image"),
        ({"labels": [0, 1, 3, 0, 0, 0, 0]}, "", "label names no class(.|\n)*0 to 2"),
        ({"labels": [-1] * 7}, "", "negative label"),
        ({}, "?x=image,id", "one column of pictures"),
        ({}, "?x=picture", "no column 'picture'"),
    ],
)
def test_what_is_wrong_in_a_column_is_said_by_sample(tmp_path, changes, options, says):
    files = changes.get("files", [png(p) for p in PIXELS])
    rows = table("image", files, {"_type": "Image"}, changes.get("labels", Y))
    with pytest.raises(DataError, match=says):
        whole(open_data(saved(tmp_path / "set", rows, "arrow") + options))


def test_of_several_columns_of_files_one_is_named(tmp_path):
    files = [png(p) for p in PIXELS]
    rows = table("image", files, {"_type": "Image"}, Y, mask=[{"bytes": f, "path": None} for f in files])
    spec = saved(tmp_path / "set", rows, "arrow")
    with pytest.raises(DataError, match=r"image or mask(.|\n)*\?x=image&y=label"):
        open_data(spec)
    assert len(open_data(f"{spec}?x=mask")) == 7


def test_numbers_beside_class_names_are_classes_of_these_names(tmp_path):
    rows = table("image", [png(p) for p in PIXELS], {"_type": "Image"}, Y)
    data = open_data(saved(tmp_path / "set", rows, "arrow") + "?x=id&y=label")
    assert list(data.class_names) == NAMES
