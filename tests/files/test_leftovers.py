"""What a killed writer had begun to move is moved by the next writer or reader, and nothing else is."""

import errno
import json
import os
import shutil
import warnings

import pytest

from nncompress.errors import ModelFileError, Told
from nncompress.files.atomic import replacing
from nncompress.files.leftovers import complete, remove_leftovers
from tests.support.kills import half_moved


@pytest.fixture
def torn(tmp_path):
    new, here = tmp_path / "new", tmp_path / "here"
    for folder in (new, here):
        folder.mkdir()
        for name in "ab":
            (folder / name).write_text("old" if folder is here else "new")
    half_moved(here, new / "a", new / "b")
    assert {name: (here / name).read_text() for name in "ab"} == {"a": "old", "b": "new"}
    return here


def test_several_files_of_which_some_were_moved_are_all_moved_by_the_next_writer_that_says_so(torn):
    with pytest.warns(Told, match="^a: put in place now"), replacing(torn / "next") as path:
        path.write_text("next")
    assert {file.name: file.read_text() for file in torn.iterdir()} == {
        "a": "new",
        "b": "new",
        "next": "next",
    }


def test_what_was_not_moved_waits_while_its_place_is_read(torn):
    with replacing(torn / "next", protect=[torn / "a"]) as path:
        path.write_text("next")
    assert (torn / "a").read_text() == "old"
    with pytest.warns(Told):
        remove_leftovers(torn)
    assert (torn / "a").read_text() == "new"


def test_what_somebody_put_there_since_stays(torn):
    (torn / "a").write_text("mine")
    with pytest.warns(Told, match="others are there since"):
        remove_leftovers(torn)
    assert {file.name: file.read_text() for file in torn.iterdir()} == {"a": "mine", "b": "new"}


def test_a_place_that_cannot_be_taken_is_said_and_does_not_stop_other_writes(torn, monkeypatch):
    move = os.replace

    def refused(source, target):
        if target == torn / "a":
            raise OSError(errno.EBUSY, "is in use")
        move(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.warns(Told, match="^a: .* is in use"), replacing(torn / "next") as path:
        path.write_text("next")
    assert (torn / "next").read_text() == "next"
    monkeypatch.undo()
    with pytest.warns(Told, match="put in place now"):
        remove_leftovers(torn)
    assert (torn / "a").read_text() == "new"


@pytest.mark.parametrize("name", ["a", "b", "link"])
def test_several_files_of_which_some_were_moved_are_all_moved_before_one_of_them_is_read(torn, name):
    (torn / "far").mkdir()
    (torn / "far" / "link").symlink_to(torn / "a")
    with pytest.warns(Told, match="^a: put in place now"):
        complete(torn / ("far/link" if name == "link" else name))
    assert {file.name: file.read_text() for file in torn.iterdir() if file.is_file()} == {
        "a": "new",
        "b": "new",
    }


def test_a_reader_of_another_file_leaves_them(torn):
    (torn / "c").write_text("c")
    complete(torn / "c")
    assert (torn / "a").read_text() == "old"


def test_what_is_half_moved_and_cannot_be_finished_is_not_read_until_that_is_settled(torn, monkeypatch):
    def refused(source, target):
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.warns(Told, match="read-only"), pytest.raises(ModelFileError) as caught:
        complete(torn / "b")
    assert (torn / "a").read_text() == "old"
    [left] = torn.glob(".nncompress-*.part")
    assert f"delete {left}" in caught.value.remedy
    shutil.rmtree(left)
    complete(torn / "b")


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
        remove_leftovers(here)
    assert [path.name for path in here.iterdir()] == [".nncompress-abc_defg.part"]
    assert [path.read_text() for path in mine.rglob("notes.txt")] == ["mine"]
