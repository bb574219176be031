"""What a pickle would build is found without building it."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile

import pytest
import torch

from nncompress.errors import ModelFileError
from nncompress.files.pickle_scan import scan_file, scan_pickles
from nncompress.loading.pickle.read import read_pickle

PROTOCOL = b"\x80\x02"


def scan(content: bytes, most: int = 1000):
    return scan_pickles(io.BytesIO(PROTOCOL + content + b"."), 1, most)


@pytest.mark.parametrize("new_format", [True, False])
def test_names_and_storages_are_those_of_the_file(new_format, tmp_path):
    module = torch.nn.Linear(3, 2)
    value = {"m": module, "h": torch.zeros(5, dtype=torch.bfloat16), "optimizer": {1: (2**40, {3})}}
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    found = scan_file(tmp_path / "a.pt")
    assert {"torch.nn.modules.linear.Linear", "torch.BFloat16Storage"} <= found.names
    assert sorted(found.stored.values()) == [8, 10, 24]


def storage(kind: bytes, count: bytes) -> bytes:
    """A reference to a storage of so many numbers."""
    return b"(X\x07\0\0\0storagectorch\n" + kind + b"\nX\x01\0\0\x000X\x03\0\0\0cpu" + count + b"tQ"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x04\x85R", "asks for so many bytes"),
        (b"X\xff\xff\xff\x7f1", "expected"),
        (b"]q\x00K\x01" + b"\x86".join(b"h\x00h\x00" for _ in range(1)) + b"2", "opcode DUP"),
        (b"N" + b"q\x00h\x00\x86" * 40, "a tuple of more than"),
        (b"R", "malformed"),
        (b"K\x01K\x01R", "a call of what is no function"),
        (
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu\x8a\x06\0\0\0\0\0\x01tQ",
            "tensors of",
        ),
        (storage(b"FloatStorage", b"\x8a\x06\0\0\0\0\0\x01"), "tensors of"),
        (storage(b"Size", b"K\x01"), "a storage of the class"),
    ],
)
def test_pickle_that_asks_for_more_than_it_holds(content, what):
    with pytest.raises(ValueError, match=what):
        scan(content)


def test_bombs_of_a_kilobyte_are_refused_by_the_loader(tmp_path):
    """`bytearray(2**34)` is allowed by torch's own safe unpickler, and takes 16 GiB."""
    bomb = PROTOCOL + b"c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x04\x85R."
    assert [op.name for op, _, _ in pickletools.genops(bomb)][1:4] == ["GLOBAL", "LONG1", "TUPLE1"]
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, bomb if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(ModelFileError, match=r"b\.pt is damaged"):
        read_pickle(tmp_path / "b.pt")


def test_plain_pickle_of_another_protocol():
    with pytest.raises(ValueError, match="opcode"):
        scan_pickles(io.BytesIO(pickle.dumps([1], 4)), 1, 100)
