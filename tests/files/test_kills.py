"""Killed before every single call to the system of its writing, a file is the old one or the new one, whole.

`benchmarks/robustness/faults.py` does the same to whole commands, at random instants.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nncompress.cli import session
from nncompress.exporting import write_pt2
from nncompress.files.atomic import replacing
from nncompress.files.ledger import Ledger
from nncompress.ir import Model
from nncompress.train import checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "tempfile.mkdtemp")


def killed_before(call: int, work) -> bool:
    """Whether a child that does `work` was killed before its `call`-th call; False where it made fewer."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if event not in EVENTS:
                return
            seen += 1
            if seen == call:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sync = os.fsync
            os.fsync = lambda descriptor: (hook("open", ()), sync(descriptor))
            sys.addaudithook(hook)
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def network(seed: int) -> Model:
    torch.manual_seed(seed)
    return Model.from_module(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), (torch.randn(2, 3),))


def two_files(folder: Path, number: int) -> None:
    with replacing(folder / "out", is_ours=lambda path: path.name == "beside") as path:
        path.write_text(f"{number}" * 1000)
        path.with_name("beside").write_text(f"{number}" * 1000)


def ledger(folder: Path, number: int) -> None:
    with Ledger(folder).writing("out") as path:
        path.write_text(f"{number}" * 1000)


def one_session(folder: Path, number: int) -> None:
    session.write(session.Session(("m.pt", f"{number}.pt2")))


def one_checkpoint(folder: Path, number: int) -> None:
    checkpoint.save(folder / "out", {"of": "a run"}, {"step": number})


def pt2(folder: Path, number: int) -> None:
    write_pt2(network(number), folder / "out.pt2", storage="entropy")


def contents(folder: Path) -> dict[str, bytes]:
    locks = (".nncompress.lock",)
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in locks)
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("write", [two_files, ledger, one_session, one_checkpoint, pt2])
def test_the_old_file_or_the_new_one(tmp_path, monkeypatch, write):
    new = tmp_path / "new"
    new.mkdir()
    monkeypatch.chdir(new)
    write(new, 1)
    write(new, 2)
    expected = contents(new)
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "mine.pt2").write_text("the user's")
    write(folder, 1)
    old = {name: content for name, content in contents(folder).items() if name != "mine.pt2"}
    call = 1
    while killed_before(call, lambda: write(folder, 2)):
        call += 1
        for each in sorted({path.parent for path in folder.rglob(".nncompress-*.part")}):
            with replacing(each / "next") as path:
                path.write_text("the next writer")
            (each / "next").unlink()
        assert not list(folder.rglob(".nncompress-*.part"))
        found = contents(folder)
        assert found.pop("mine.pt2") == b"the user's"
        for name, content in found.items():
            if name != ".nncompress.json":  # the record may name both
                assert content in (old.get(name), expected[name]), f"{name} before call {call}"
        assert set(found) == set(expected) == set(old)
        assert write is not two_files or found in (old, expected), f"one of each before call {call}"
        write(folder, 1)  # whatever the kill left, it is not in the way
    assert call > 8, "it made no calls that it could be killed before"
    found = contents(folder)
    found.pop("mine.pt2")
    assert {**found, ".nncompress.json": b""} == {**expected, ".nncompress.json": b""}
