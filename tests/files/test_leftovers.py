"""What a killed writer had begun to move is moved by the next one, and nothing else is."""

import errno
import json
import os
import subprocess
import sys
import warnings

import pytest

from nncompress.errors import Told
from nncompress.files import atomic
from nncompress.files.atomic import replacing

KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
from nncompress.files.atomic import replacing
move = os.replace
def killed(source, target):
    move(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = killed
with replacing(Path(sys.argv[1]) / "a", is_ours=lambda path: True) as path:
    path.write_text("new")
    path.with_name("b").write_text("new")
"""


@pytest.fixture
def half_moved(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert {name: (tmp_path / name).read_text() for name in "ab"} == {"a": "old", "b": "new"}
    return tmp_path


def test_several_files_of_which_some_were_moved_are_all_moved_by_the_next_writer_that_says_so(half_moved):
    with pytest.warns(Told, match="^a: put in place now"), replacing(half_moved / "next") as path:
        path.write_text("next")
    assert {file.name: file.read_text() for file in half_moved.iterdir()} == {
        "a": "new",
        "b": "new",
        "next": "next",
    }


def test_what_was_not_moved_waits_while_its_place_is_read(half_moved):
    with replacing(half_moved / "next", protect=[half_moved / "a"]) as path:
        path.write_text("next")
    assert (half_moved / "a").read_text() == "old"
    with pytest.warns(Told):
        atomic.remove_leftovers(half_moved)
    assert (half_moved / "a").read_text() == "new"


def test_what_somebody_put_there_since_stays(half_moved):
    (half_moved / "a").write_text("mine")
    with pytest.warns(Told, match="others are there since"):
        atomic.remove_leftovers(half_moved)
    assert {file.name: file.read_text() for file in half_moved.iterdir()} == {"a": "mine", "b": "new"}


def test_a_place_that_cannot_be_taken_is_said_and_does_not_stop_other_writes(half_moved, monkeypatch):
    move = os.replace

    def refused(source, target):
        if target == half_moved / "a":
            raise OSError(errno.EBUSY, "is in use")
        move(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.warns(Told, match="^a: .* is in use"), replacing(half_moved / "next") as path:
        path.write_text("next")
    assert (half_moved / "next").read_text() == "next"
    monkeypatch.undo()
    with pytest.warns(Told, match="put in place now"):
        atomic.remove_leftovers(half_moved)
    assert (half_moved / "a").read_text() == "new"


def brought(folder, make_moving, noted=None):
    """What an archive may bring: a dead writer's folder."""
    left = folder / ".nncompress-abc_defg.part"
    left.mkdir(parents=True)
    note = "" if noted is None else "\n" + json.dumps(noted)
    (left / "writer.json").write_text(json.dumps({"writer": "nncompress"}) + note)
    make_moving(left / "moving")
    return left


@pytest.mark.parametrize("noted", [None, {"data.csv": 1}, ["data.csv"]])
def test_files_that_no_writer_noted_replace_nothing(tmp_path, noted):
    (tmp_path / "data.csv").write_text("mine")

    def make(moving):
        moving.mkdir()
        (moving / "data.csv").write_text("from elsewhere")

    left = brought(tmp_path, make, noted)
    with pytest.warns(Told, match=f"left alone.*delete {left}"), replacing(tmp_path / "next") as path:
        path.write_text("next")
    assert (tmp_path / "data.csv").read_text() == "mine"
    assert (left / "moving" / "data.csv").exists()


@pytest.mark.parametrize("link", ["moving", "folder", "file"])
def test_no_link_in_a_leftover_is_followed(tmp_path, link):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    noted = {"notes.txt": (mine / "notes.txt").stat().st_ino}
    here = tmp_path / "here"
    here.mkdir()
    if link == "folder":
        (mine / "writer.json").write_text('{"writer": "nncompress"}\n' + json.dumps(noted))
        (mine / "moving").mkdir()
        (mine / "notes.txt").rename(mine / "moving" / "notes.txt")
        (here / ".nncompress-abc_defg.part").symlink_to(mine)
    elif link == "moving":
        brought(here, lambda moving: moving.symlink_to(mine), noted)
    else:
        (mine / "link").symlink_to(mine / "notes.txt")
        noted = {"link": (mine / "link").lstat().st_ino}
        brought(here, lambda moving: (moving.mkdir(), (mine / "link").rename(moving / "link")), noted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Told)
        atomic.remove_leftovers(here)
    assert [path.name for path in here.iterdir()] == [".nncompress-abc_defg.part"]
    assert [path.read_text() for path in mine.rglob("notes.txt")] == ["mine"]
