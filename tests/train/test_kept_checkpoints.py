"""Checkpoints of a run: killed, damaged, of another run, on a full disk."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import Kill, Killed

from nncompress.data import open_data
from nncompress.errors import (
    ModelFileError,
    OutputError,
    UsageError,
    VerificationError,
)
from nncompress.train import TrainSettings, train
from nncompress.train import checkpoint as checkpoints
from nncompress.train.loop import _log
from tests.train.corners import same, small


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_killed_run_continues_bit_for_bit(data, tmp_path, optimizer):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    settings = TrainSettings(
        epochs=3, batch=8, lr=0.05, optimizer=optimizer, schedule="one-cycle", patience=2, flip=True, crop=2
    )
    whole, expected = train(model, dataset, settings, log=tmp_path / "whole.jsonl")
    file, log = tmp_path / "run.checkpoint", tmp_path / "log.jsonl"
    kept = {"checkpoint": file, "resume": True, "checkpoint_seconds": 0.0, "log": log}
    for at in (0, 1, 3, 4, 2):  # killed before anything, within an epoch, near its end, again and again
        with pytest.raises(Killed):
            train(model, dataset, settings, progress=Kill(at), **kept)
    resumed, result = train(model, dataset, settings, **kept)
    assert same(whole, resumed)
    rows = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in found.epochs] for found in (expected, result)
    ]
    assert rows[0] == rows[1]
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2, 3]


DAMAGES = {  # to the state in a checkpoint of this very run
    "no optimizer": lambda state: state.pop("optimizer"),
    "a count that is text": lambda state: state.update(step="1"),
    "rows that are none": lambda state: state.update(rows=[1]),
    "more than it has": lambda state: state.update(more=1),
    "tensors of another shape": lambda state: state.update(
        tensors={name: tensor.reshape(-1)[:1] for name, tensor in state["tensors"].items()}
    ),
}


def test_a_damaged_checkpoint_of_this_very_run_is_one_message(data, tmp_path):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    settings = TrainSettings(epochs=1, batch=40, lr=0.05)
    file = tmp_path / "run.checkpoint"
    train(model, dataset, settings, checkpoint=file)
    stored = torch.load(file, weights_only=True)
    for damage in DAMAGES.values():
        damaged = {**stored, "state": dict(stored["state"])}
        damage(damaged["state"])
        torch.save(damaged, file)
        with pytest.raises(ModelFileError, match="is damaged"):
            train(model, dataset, settings, checkpoint=file, resume=True)


def test_a_checkpoint_that_would_not_be_read_again_is_not_kept(tmp_path, monkeypatch):
    state = {"tensors": {"w": torch.randn(3)}, "best_loss": float("nan"), "rows": [{"a": (1, 2)}]}
    checkpoints.save(tmp_path / "c", {"model": "a"}, state)
    before = (tmp_path / "c").read_bytes()
    save = torch.save
    monkeypatch.setattr(
        checkpoints.torch, "save", lambda value, file: save({**value, "state": {**state, "rows": []}}, file)
    )
    with pytest.raises(VerificationError, match="holds another state"):
        checkpoints.save(tmp_path / "c", {"model": "a"}, state)
    assert (tmp_path / "c").read_bytes() == before


def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(data, tmp_path, monkeypatch):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    settings = TrainSettings(epochs=3, batch=8, lr=0.05)
    whole, _ = train(model, dataset, settings)
    file = tmp_path / "run.checkpoint"
    save, calls = torch.save, []

    def torn(value, path):
        calls.append(path)
        if len(calls) == 7:
            path.write(b"half")
            raise Killed
        save(value, path)

    monkeypatch.setattr(checkpoints.torch, "save", torn)
    with pytest.raises(Killed):
        train(model, dataset, settings, checkpoint=file, checkpoint_seconds=0.0)
    assert len(list(tmp_path.glob("*checkpoint*"))) == 1
    resumed, _ = train(model, dataset, settings, checkpoint=file, resume=True)
    assert same(whole, resumed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_error(data, tmp_path, monkeypatch):
    _, model = small()
    real, where = checkpoints.replacing, tmp_path / "run.checkpoint"

    @contextmanager
    def on_full_disk(*arguments, **options):
        with real(*arguments, **options) as temporary:
            temporary.symlink_to("/dev/full")
            yield temporary

    monkeypatch.setattr(checkpoints, "replacing", on_full_disk)
    with pytest.raises(OutputError, match="cannot write") as refusal:
        train(model, open_data(str(data), model.inputs), TrainSettings(epochs=1), checkpoint=where)
    assert refusal.value.got == "No space left on device"
    assert not list(tmp_path.glob("*checkpoint*"))
    full = tmp_path / "log"
    full.symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot write .*log") as refusal:
        _log(full, {"epoch": 1})
    assert refusal.value.got == "No space left on device"


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    file = tmp_path / "run.checkpoint"
    train(model, dataset, TrainSettings(epochs=1, batch=8), checkpoint=file)
    with pytest.raises(UsageError, match="another run") as caught:
        train(model, dataset, TrainSettings(epochs=1, batch=8, lr=0.5), checkpoint=file, resume=True)
    assert "lr 0.01 there, 0.5 here" in str(caught.value)


def test_data_that_has_changed_is_another_run(data, tmp_path):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    kept = {"checkpoint": tmp_path / "c", "resume": True}
    train(model, dataset, TrainSettings(epochs=1, batch=8), **kept)
    with pytest.raises(UsageError, match="data normalization None there"):
        train(model, open_data(str(data), model.inputs, "0.5/0.5"), TrainSettings(epochs=1, batch=8), **kept)
    arrays = np.load(data)
    np.savez(data, x=arrays["x"][:30], y=arrays["y"][:30])
    with pytest.raises(UsageError, match="data samples 40 there, 30 here"):
        train(model, open_data(str(data), model.inputs), TrainSettings(epochs=1, batch=8), **kept)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    torch.save({"schema": 1, "identity": {}, "state": {}}, tmp_path / "c")
    with pytest.raises(ModelFileError, match="another version"):
        checkpoints.load(tmp_path / "c", {})
