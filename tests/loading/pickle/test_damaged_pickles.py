"""Pickled checkpoints that are cut, swollen or scrambled: one of our errors, and no memory spent."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.errors import ModelFileError, UnsafeFileError
from nncompress.loading.pickle.read import read_pickle


def save(value, path: Path) -> Path:
    torch.save(value, path)
    return path


def rewritten(path: Path, edit, compression=zipfile.ZIP_STORED) -> Path:
    out = path.with_name("edited.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, edit(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    return out


@pytest.mark.parametrize("kept", [0, 1, 20, -20])
def test_a_cut_pickle_is_refused_by_its_name(kept, tmp_path):
    path = rewritten(save(nn.Linear(3, 2), tmp_path / "model.pt"), lambda content: content[:kept])
    with pytest.raises(ModelFileError, match=r"edited\.pt"):
        read_pickle(path)


def test_pickle_of_another_protocol(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(3, 2), path, pickle_protocol=4)
    with pytest.raises(ModelFileError, match=r"model\.pt"):
        read_pickle(path)


def test_storage_larger_than_its_bytes(tmp_path):
    """A tensor of 2**20 elements over the 16 bytes that are there."""
    path = save({"w": torch.arange(4.0)}, tmp_path / "model.pt")

    def enlarge(content: bytes) -> bytes:
        start = content.index(b"cpu")
        return content[:start] + content[start:].replace(b"K\x04", b"J\x00\x00\x10\x00")

    with pytest.raises(ModelFileError, match=r"edited\.pt"):
        read_pickle(rewritten(path, enlarge))


def test_a_compressed_archive_is_refused(tmp_path):
    path = save({"w": torch.zeros(1_000_000)}, tmp_path / "model.pt")
    bomb = rewritten(path, lambda content: content, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ModelFileError, match="compressed"):
        read_pickle(bomb)


def test_fuzzed_pickles_only_raise_our_errors(tmp_path):
    """Flipped bytes anywhere in the pickle: an answer or one of our errors, never another exception."""
    path = save(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tmp_path / "model.pt")
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):

        def flip(content: bytes) -> bytes:
            damaged = bytearray(content)
            for position in generator.integers(0, len(content), 2):
                damaged[position] = generator.integers(0, 256)
            return bytes(damaged)

        try:
            read_pickle(rewritten(path, flip))
            outcomes.add("opened")
        except (ModelFileError, UnsafeFileError) as error:
            outcomes.add(type(error).__name__)
    assert "ModelFileError" in outcomes


def test_plain_pickle_bytes_are_no_checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"a": io.BytesIO()}))
    with pytest.raises(ModelFileError):
        read_pickle(path)
