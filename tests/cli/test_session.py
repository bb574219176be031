"""`.nncompress/session.json` is a file like any other: it can be damaged, and it can come from anyone."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from nncompress.cli import session
from nncompress.cli.app import run
from nncompress.exporting import write
from nncompress.ir import Model


def test_session_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert session.read() is None
    (tmp_path / "a.prune.pt2").write_bytes(b"x")
    session.write(session.Session(("a.pt2", "a.prune.pt2")))
    assert session.read() == session.Session(("a.pt2", "a.prune.pt2"))
    (tmp_path / "a.prune.pt2").unlink()
    assert session.read() is None


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"{", b"[]", b'{"chain": "a.pt2"}', b'{"chain": [1]}', b'{"chain": []}', b"\xff", b""],
)
def test_damaged_session_is_said_and_not_used(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".nncompress").mkdir()
    (tmp_path / ".nncompress" / "session.json").write_bytes(content)
    assert session.read() is None
    assert "session.json is not used: it is damaged" in capsys.readouterr().err


def test_session_that_is_a_fifo_does_not_wait(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".nncompress").mkdir()
    os.mkfifo(tmp_path / ".nncompress" / "session.json")
    assert session.read() is None
    assert "a FIFO" in capsys.readouterr().err


def test_artifact_of_an_impossible_name_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session.write(session.Session(("x" * 5000 + ".pt2",)))
    assert session.read() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_session_goes_on_from_its_model_in_float32(dtype, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = nn.Linear(4, 3).eval().to(dtype)
    write(Model.from_module(module, (torch.randn(2, 4, dtype=dtype),)), "half.pt2")
    assert run(["export", "half.pt2", "--precision", "float32", "-o", "float32.pt2"]) == 0
    assert run(["prune", "float32.pt2", "--sparsity", "0.5", "-o", "pruned.pt2"]) == 0
    assert "away from the original's" in capsys.readouterr().out
