"""Files are told by content; what is no model gets one message that says what it is."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from nncompress.errors import ModelFileError, UnsupportedError
from nncompress.loading.file_kind import FileKind, file_kind


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind that loads, all under a name that says nothing."""
    folder = tmp_path_factory.mktemp("kinds")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.randn(3, 2),)), folder / "pt2.pt2")
    torch.save(nn.Linear(2, 2), folder / "module")
    torch.save({"w": torch.ones(2)}, folder / "weights")
    torch.save({"w": torch.ones(2)}, folder / "legacy", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"w": torch.ones(2)}, folder / "safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pt2.pt2", FileKind.PT2),
        ("module", FileKind.PICKLE),
        ("weights", FileKind.PICKLE),
        ("legacy", FileKind.PICKLE),
        ("safetensors", FileKind.SAFETENSORS),
    ],
)
def test_a_kind_is_known_by_contents_not_by_name(name, kind, files, tmp_path):
    renamed = tmp_path / "model.onnx"  # the name does not count
    renamed.write_bytes((files / name).read_bytes())
    assert file_kind(renamed) is kind


@pytest.mark.parametrize("name", ["pt2.pt2", "module", "safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_cut_files_are_said_to_be_cut(name, share, files, tmp_path):
    content = (files / name).read_bytes()
    path = tmp_path / "cut"
    length = 60 if name == "safetensors" else int(len(content) * share)
    path.write_bytes(content[:length])
    with pytest.raises(ModelFileError, match="cut off"):
        file_kind(path)


def test_an_archive_that_says_it_spans_several_disks(files, tmp_path):
    path, content = tmp_path / "m.pt", bytearray((files / "module").read_bytes())
    end = content.rindex(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 7)
    path.write_bytes(content[:end] + locator + content[end:])
    with pytest.raises(ModelFileError, match="damaged zip archive"):
        file_kind(path)


def onnx_bytes() -> bytes:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    return onnx.helper.make_model(graph, producer_name="test").SerializeToString()


def zip_bytes(tmp_path, *names: str) -> bytes:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return path.read_bytes()


def tar_bytes(tmp_path) -> bytes:
    """Which ends as the archive in it does."""
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pt")
    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        archive.add(tmp_path / "weights.pt", "weights.pt")
    return (tmp_path / "archive.tar").read_bytes()


REFUSED = {
    "empty": (lambda t: b"", "is empty"),
    "text": (lambda t: b"hello, world\nsecond line", "text file: 'hello, world'"),
    "html": (lambda t: b"<!DOCTYPE html><html>404</html>", "web page"),
    "lfs pointer": (lambda t: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "noise": (lambda t: np.random.default_rng(0).bytes(4096), "no kind known"),
    "zeros": (lambda t: bytes(100), "no kind known"),
    "plain pickle": (lambda t: pickle.dumps({"w": 1}), "torch.save did not write"),
    "numpy": (lambda t: b"\x93NUMPY\x01\x00", "NumPy"),
    "npz": (lambda t: zip_bytes(t, "x.npy", "y.npy"), "--data"),
    "other zip": (lambda t: zip_bytes(t, "word/document.xml"), "zip archive of"),
    "old pt2": (lambda t: zip_bytes(t, "version", "serialized_exported_program.json"), "before 2.8"),
    "gzip": (lambda t: gzip.compress(b"x" * 100), "gzip"),
    "keras": (lambda t: b"\x89HDF\r\n\x1a\n", "HDF5"),
    "safetensors with a long header": (
        lambda t: struct.pack("<Q", 10**6) + b'{"a":1}',
        "cut off",
    ),
    "a tar of a model": (lambda t: tar_bytes(t), "a tar archive"),
    "keras 3": (lambda t: zip_bytes(t, "metadata.json", "config.json", "model.weights.h5"), "tf2onnx"),
    "truncated zip": (lambda t: b"PK\x03\x04" + bytes(100), "cut off"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_no_model(name, tmp_path):
    make, message = REFUSED[name]
    path = tmp_path / "model.pt"
    path.write_bytes(make(tmp_path))
    with pytest.raises(ModelFileError, match=message) as caught:
        file_kind(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value).splitlines()) <= 4


def test_onnx_is_told_by_its_content(tmp_path):
    (tmp_path / "model.bin").write_bytes(onnx_bytes())
    assert file_kind(tmp_path / "model.bin") is FileKind.ONNX


def test_a_program_for_phones_is_no_source(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"\x1c\x00\x00\x00ET12" + bytes(50))
    with pytest.raises(UnsupportedError, match="ExecuTorch") as caught:
        file_kind(path)
    assert "bench" in str(caught.value)


def test_a_torchscript_archive_is_known_by_its_contents(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "model.pt"))
    assert file_kind(tmp_path / "model.pt") is FileKind.TORCHSCRIPT


@pytest.mark.parametrize(
    ("name", "message", "remedy"),
    [
        (
            "https://example.com/m.pt",
            "https://example.com/m.pt is an address",
            "curl -LO https://example.com/m.pt",
        ),
        ("s3://shelf/m.pt", "s3://shelf/m.pt is an address", "download it first"),
        ("net.py:build", "names what builds a network", "weights.pt --arch net.py:build"),
    ],
)
def test_what_is_no_path_of_a_model_says_how_to_get_one(name, message, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("")
    with pytest.raises(ModelFileError, match=message) as caught:
        file_kind(name)
    assert remedy in caught.value.remedy


def test_missing_file_names_its_neighbours(files):
    with pytest.raises(ModelFileError, match=r"does not exist(.|\n)*pt2\.pt2"):
        file_kind(files / "pt3.pt2")


def test_a_file_in_a_missing_folder_does_not_exist(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        file_kind(tmp_path / "nowhere" / "model.pt2")


def test_a_directory_is_refused_with_the_models_in_it(files):
    with pytest.raises(ModelFileError, match=r"directory(.|\n)*pt2\.pt2"):
        file_kind(files)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.pt")  # opening it would wait for a writer
    for path, what in [
        ("/dev/zero", "a device"),
        (tmp_path / "fifo.pt", "a FIFO"),
        (tmp_path / ("x" * 300), "file name too long"),
        ("a\0b", "a name that no file can have"),
    ]:
        with pytest.raises(ModelFileError, match="is no file that can be read") as refused:
            file_kind(path)
        assert refused.value.got == what
