"""No command writes what it reads, under any name, nor what the user put where our own files go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.cli.app import run
from nncompress.cli.work.model_files import read_by
from nncompress.errors import ExitCode, OutputError
from nncompress.files.signed_text import is_signed
from nncompress.files.targets import check_target
from nncompress.passes import Prune
from nncompress.recipe import read_recipe, write_recipe
from nncompress.studies.growth import sine
from nncompress.studies.study import Request

SECOND = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    torch.save(model, "model.pt")
    torch.save(model.state_dict(), "weights.pt")
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for name in ("data", "val"):
        np.savez(f"{name}.npz", x=x, y=x[:, :2])
    Path("small.toml").write_text('[[pass]]\nname = "prune"\nstd = 0.5\n')
    Path("net.py").write_text(SECOND)
    Path("baseline.json").write_text("{}")
    return tmp_path


ARCH = ["weights.pt", "--arch", "net.py:build", "--input", "1x3"]
TRAIN = ["train", "model.pt", "--data", "data.npz", "--val", "val.npz", "--teacher", "model.pt"]


@pytest.mark.parametrize(
    ("command", "read"),
    [
        (["prune", "model.pt", "--data", "data.npz"], "model.pt"),
        (["prune", "model.pt", "--data", "data.npz"], "data.npz"),
        (["prune", *ARCH], "net.py"),
        (["compress", "model.pt", "--input", "1x3", "--recipe", "small.toml"], "small.toml"),
        (["export", "model.pt", "--input", "1x3"], "model.pt"),
        (["export", *ARCH], "net.py"),
        (TRAIN, "data.npz"),
        (TRAIN, "val.npz"),
        (["cycle", *TRAIN[1:]], "val.npz"),
    ],
)
def test_an_input_behind_another_name_is_not_written(here, capsys, monkeypatch, command, read):
    monkeypatch.setattr("nncompress.pipeline.run", lambda *_: pytest.fail("the work began"))
    content = Path(read).read_bytes()
    Path("out.pt2").hardlink_to(read)
    assert run([*command, "-o", "out.pt2"]) == ExitCode.OUTPUT
    assert "is not overwritten" in capsys.readouterr().err
    assert Path(read).read_bytes() == Path("out.pt2").read_bytes() == content


@pytest.mark.parametrize("read", ["model.pt", "baseline.json", "data.npz", "net.py"])
def test_bench_does_not_write_what_it_reads(here, capsys, read):
    content = Path(read).read_bytes()
    Path("out.json").symlink_to(read)
    arguments = ["model.pt", "--compare", "baseline.json", "--data", "data.npz", "--arch", "net.py:build"]
    assert run(["bench", *arguments, "-o", "out.json"]) == ExitCode.OUTPUT
    assert "is not overwritten" in capsys.readouterr().err
    assert Path(read).read_bytes() == content


def test_the_tokenizer_of_the_data_is_not_written_but_what_else_lies_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tokenizer.json", "old.pt2"):
        Path(name).write_text("{}")
    reads = read_by(None, "r.csv?length=128&tokenizer=.")
    with pytest.raises(OutputError, match="is the input"):
        check_target(Path("tokenizer.json"), reads)
    check_target(Path("old.pt2"), reads)


def test_a_plot_is_not_drawn_over_an_image_of_the_data(here, capsys):
    pytest.importorskip("matplotlib")
    Path("images/cat").mkdir(parents=True)
    Path("images/cat/1.png").write_bytes(b"an image")
    arguments = ["reproduce", "autoencoder", "--data", "images", "--plot", "images/cat/1.png"]
    assert run(arguments) == ExitCode.OUTPUT
    assert "which is read" in capsys.readouterr().err
    assert Path("images/cat/1.png").read_bytes() == b"an image"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["export", "model.pt", "--input", "1x3"], "model.onnx"),
        (["prune", "model.pt", "--input", "1x3"], "model.prune.pt2"),
        (["new", "sine"], "sine.pt2"),
    ],
)
def test_a_default_output_replaces_only_what_we_wrote(here, capsys, command, name):
    Path(name).write_bytes(b"weeks of work")
    assert run(command) == ExitCode.OUTPUT
    said = capsys.readouterr().err
    assert f"{name} is there already, and nncompress did not write it" in said
    assert "-o names another file" in said
    assert Path(name).read_bytes() == b"weeks of work"
    assert run([*command, "-o", name]) == ExitCode.OK, "a name that was typed is written"
    assert run(command) == ExitCode.OK, "and now it is ours"


def test_a_log_and_a_checkpoint_are_not_written_over_what_the_user_has_there(here, capsys):
    command = ["train", "model.pt", "--data", "data.npz", "--epochs", "1", "-o", "out.pt2"]
    Path("out.pt2.jsonl").write_text('{"mine": 1}\n')
    assert run(command) == ExitCode.OUTPUT
    assert "--log names another file" in capsys.readouterr().err
    Path("out.pt2.jsonl").unlink()
    Path("out.pt2.checkpoint").write_bytes(b"mine")
    assert run(command) == ExitCode.USAGE
    assert run([*command, "--resume"]) == ExitCode.MODEL_FILE
    assert Path("out.pt2.checkpoint").read_bytes() == b"mine"
    Path("out.pt2.checkpoint").unlink()
    assert run(command) == run(command) == ExitCode.OK
    assert "epoch" in json.loads(Path("out.pt2.jsonl").read_text())


@pytest.mark.parametrize("name", ["small.toml", "small.after.toml"])
def test_optimize_does_not_write_its_recipe_over_one_of_the_user(here, capsys, name):
    Path("small.toml").unlink()
    Path(name).write_text('[[pass]]\nname = "share"\n')
    before = Path(name).read_bytes()
    search = ["optimize", "model.pt", "--data", "data.npz", "--max-drop", "9", "--goal", "macs"]
    assert run([*search, "--input", "1x3", "-o", "small.pt2"]) == ExitCode.OUTPUT
    assert f"{name} is there already, and nncompress did not write it" in capsys.readouterr().err
    assert Path(name).read_bytes() == before


def test_a_recipe_that_we_wrote_is_ours_until_it_is_edited(tmp_path):
    passes = [Prune(std=0.5)]
    write_recipe(tmp_path / "r.toml", passes, "# made by a search\n")
    assert is_signed(tmp_path / "r.toml")
    assert read_recipe(tmp_path / "r.toml") == passes
    with (tmp_path / "r.toml").open("a") as file:
        file.write("# mine\n")
    assert not is_signed(tmp_path / "r.toml")


def test_what_the_user_keeps_in_the_sessions_folder_stays(here, capsys):
    Path(".nncompress").mkdir()
    mine = {"model.original.pt2": b"mine", "notes.txt": b"mine, too"}
    for name, content in mine.items():
        Path(".nncompress", name).write_bytes(content)
    assert run(["prune", "model.pt", "--input", "1x3"]) == ExitCode.OK
    said = capsys.readouterr().err
    assert "model.original.pt2 is not what was written there; it is not overwritten" in said
    assert "the next command has to name its MODEL" in said
    assert {name: Path(".nncompress", name).read_bytes() for name in mine} == mine


def test_a_damaged_session_is_told_and_stays(here, capsys):
    Path(".nncompress").mkdir()
    Path(".nncompress/session.json").write_text('{"chain": 1}')
    assert run(["prune", "model.pt", "--input", "1x3", "-o", "a.pt2"]) == ExitCode.OK
    said = capsys.readouterr().err
    assert "rm .nncompress/session.json" in said
    assert "the next command has to name its MODEL" in said
    assert Path(".nncompress/session.json").read_text() == '{"chain": 1}'
    Path(".nncompress/session.json").unlink()  # the remedy
    assert run(["prune", "model.pt", "--input", "1x3", "-o", "a.pt2"]) == ExitCode.OK
    assert run(["inspect"]) == ExitCode.OK


def test_a_result_kept_for_the_next_command_does_not_replace_what_this_one_read(here):
    """`.nncompress/small.pt2` is read, and its own result would be kept under that name."""
    assert run(["prune", "model.pt", "--input", "1x3", "-o", "small.onnx"]) == ExitCode.OK
    first = Path(".nncompress/small.pt2").read_bytes()
    assert run(["prune", "--sparsity", "0.9", "-o", "small.onnx"]) == ExitCode.OK
    assert Path(".nncompress/small.pt2").read_bytes() == first
    chain = json.loads(Path(".nncompress/session.json").read_text())["chain"]
    assert chain[-2:] == [".nncompress/small.2.pt2", "small.onnx"]


def test_a_study_keeps_its_files_beside_those_of_the_user(tmp_path):
    (tmp_path / "train.npz").write_bytes(b"mine")
    with pytest.raises(OutputError, match="not overwritten"):
        sine._data(Request(tmp_path))
    assert (tmp_path / "train.npz").read_bytes() == b"mine"
    (tmp_path / "train.npz").unlink()
    sine._data(Request(tmp_path))
    sine._data(Request(tmp_path))  # its own files it may replace
