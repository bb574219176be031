import os

import pytest

from nncompress.errors import OutputError
from nncompress.files.folders import cache_folder, make_folder
from nncompress.files.targets import check_chosen, check_target


def test_a_folder_that_may_not_be_written_to_is_told_before_the_work(tmp_path, monkeypatch):
    check_target(tmp_path / "m.pt2")
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)  # root may write everywhere
    with pytest.raises(OutputError, match=r"cannot write .*m\.pt2") as refusal:
        check_target(tmp_path / "m.pt2")
    assert "may not be written to" in refusal.value.got


@pytest.mark.parametrize("reached", ["hard", "link", "chain", "spelling", "folder link"])
def test_an_input_is_not_written_under_any_of_its_names(tmp_path, reached, monkeypatch):
    source = tmp_path / "model.pt2"
    source.write_text("the user's")
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "out.pt2"
    if reached == "hard":
        target.hardlink_to(source)
    elif reached == "link":
        target.symlink_to(source)
    elif reached == "chain":
        (tmp_path / "between").symlink_to("model.pt2")
        target.symlink_to("between")
    elif reached == "spelling":
        target = source.relative_to(tmp_path).parent / ".." / tmp_path.name / "model.pt2"
    else:
        (tmp_path / "here").symlink_to(".")
        target = tmp_path / "here" / "model.pt2"
    with pytest.raises(OutputError, match="not overwritten"):
        check_target(target, [tmp_path / "missing", source])
    check_target(tmp_path / "new.pt2", [source])


def test_nothing_in_a_folder_that_is_read_is_replaced(tmp_path):
    images = tmp_path / "images"
    (images / "cat").mkdir(parents=True)
    (images / "cat" / "1.png").touch()
    with pytest.raises(OutputError, match="lies in the folder"):
        check_target(images / "cat" / "1.png", [images])
    check_target(images / "new.png", [images])


@pytest.mark.parametrize("name", ["fifo", "folder", "null", "x" * 256, "no/m.pt2", "file/m.pt2", "zero\0"])
def test_what_is_no_place_for_a_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(OutputError, match="cannot write"):
        check_target(tmp_path / name)


@pytest.mark.parametrize("below", ["file/m.pt2", "file/deeper/m.pt2"])
def test_a_file_in_the_place_of_a_folder_is_no_missing_folder(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as refusal:
        check_target(tmp_path / below)
    assert refusal.value.got.endswith("is no folder")
    assert "create" not in refusal.value.remedy


def test_a_name_that_we_chose_replaces_only_what_we_wrote(tmp_path):
    check_chosen(tmp_path / "new", lambda path: False)
    (tmp_path / "there").touch()
    check_chosen(tmp_path / "there", lambda path: True)
    with pytest.raises(OutputError, match="nncompress did not write it") as refusal:
        check_chosen(tmp_path / "there", lambda path: False)
    assert "-o names another file" in refusal.value.remedy


def test_folders_are_made_with_their_parents_but_not_in_place_of_a_file(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("content")
    for taken in ("file", "file/below", "zero\0", "x" * 256):
        with pytest.raises(OutputError, match="cannot make the folder"):
            make_folder(tmp_path / taken)
    assert (tmp_path / "file").read_text() == "content"


def test_the_cache_lies_where_the_user_says_and_nowhere_without_a_home(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "nncompress"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / ".cache" / "nncompress"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", homeless)
    assert cache_folder() is None
