"""What a killed writer had begun to move is moved by the next writer or reader, and nothing else is."""

import errno
import json
import os
import shutil
import warnings

import pytest

from nncompress.errors import ModelFileError, Told
from nncompress.files import leftovers
from nncompress.files.atomic import replacing
from nncompress.files.leftovers import complete, remove_leftovers
from nncompress.files.lock import lock
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


def test_without_the_right_to_write_what_is_half_moved_is_refused_all_the_same(torn, monkeypatch):
    opened, asked = os.open, os.access

    def open_to_read(path, flags, *mode, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "read-only file system")
        return opened(path, flags, *mode, **options)

    with monkeypatch.context() as read_only:
        read_only.setattr(os, "open", open_to_read)
        read_only.setattr(os, "access", lambda path, right: not right & os.W_OK and asked(path, right))
        with pytest.raises(ModelFileError) as caught:
            complete(torn / "b")
    assert (torn / "a").read_text() == "old"
    assert "delete" not in caught.value.remedy
    with pytest.warns(Told, match="^a: put in place now"):  # once it may be written to
        complete(torn / "b")


@pytest.mark.parametrize("hidden", ["", "writer.json", "moving"])
def test_what_may_not_be_looked_into_is_said(torn, monkeypatch, hidden):
    [left] = torn.glob(".nncompress-*.part")
    asked = os.access
    monkeypatch.setattr(os, "access", lambda path, right: path != left / hidden and asked(path, right))
    with pytest.warns(Told, match="may be of two writes"):
        complete(torn / "b")


@pytest.fixture
def moved_by_another(torn):
    [left] = torn.glob(".nncompress-*.part")
    with (left / "writer.json").open() as record:
        assert lock(record.fileno())
        yield left, record


def test_who_is_moving_several_files_is_waited_for(torn, moved_by_another, monkeypatch):
    left, record = moved_by_another

    def end(seconds):
        os.replace(left / "moving" / "a", torn / "a")
        shutil.rmtree(left)
        record.close()

    monkeypatch.setattr(leftovers.time, "sleep", end)
    complete(torn / "b")
    assert (torn / "a").read_text() == "new"


def test_who_is_moving_several_files_for_long_is_not_read_beside(torn, moved_by_another, monkeypatch):
    monkeypatch.setattr(leftovers, "PATIENCE", 0)
    (torn / "c").write_text("c")
    complete(torn / "c")
    with pytest.raises(ModelFileError, match="another process is replacing"):
        complete(torn / "b")


def test_a_file_of_a_folder_that_may_not_be_looked_into_is_left_to_its_reader(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, "permission denied")

    monkeypatch.setattr(os.path, "realpath", refused)
    monkeypatch.setattr(type(tmp_path), "glob", refused)
    complete(tmp_path / "m.onnx")


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


def test_of_a_copied_folder_the_files_are_read_once_all_are_written_anew(torn):
    copy = torn.with_name("copy")
    shutil.copytree(torn, copy)  # other inodes than those that were noted
    with pytest.warns(Told, match="left alone"), pytest.raises(ModelFileError) as caught:
        complete(copy / "b")
    assert "write all of them anew" in caught.value.remedy

    def write_anew():
        with replacing(copy / "b", is_ours=lambda path: True) as path:
            for file in (path, path.with_name("a")):
                file.write_text("anew")

    with pytest.warns(Told) as told:
        write_anew()
    assert "a: written anew" in str(told[-1].message)
    complete(copy / "b")
    assert {file.name: file.read_text() for file in copy.iterdir()} == {"a": "anew", "b": "anew"}


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
