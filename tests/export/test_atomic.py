import os
import subprocess
import sys

import pytest

from nncompress.errors import OutputError
from nncompress.export.atomic import check_target, make_folder, replacing

KILLED = """
import os, signal, sys
from nncompress.export.atomic import replacing
with replacing(sys.argv[1]) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def folders(path):
    return list(path.glob(".m.pt2.*.part"))


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    target = tmp_path / "m.pt2"
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False).returncode == -9
    (left,) = folders(tmp_path)
    assert (left / "m.pt2").read_text() == "half"
    assert not target.exists()
    with replacing(target) as path:
        path.write_text("young folders may not be locked yet")
    assert folders(tmp_path) == [left]
    os.utime(left, (0, 0))
    with replacing(target) as path:
        path.write_text("whole")
    assert not folders(tmp_path)
    assert target.read_text() == "whole"


def test_a_writer_at_work_is_left_alone(tmp_path):
    target = tmp_path / "m.pt2"
    with replacing(target) as slow:
        os.utime(slow.parent, (0, 0))
        with replacing(target) as quick:
            quick.write_text("quick")
        slow.write_text("slow")
    assert target.read_text() == "slow"
    assert not folders(tmp_path)


def test_a_folder_that_may_not_be_written_to_is_told_before_the_work(tmp_path, monkeypatch):
    check_target(tmp_path / "m.pt2")
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)  # root may write everywhere
    with pytest.raises(OutputError, match=r"cannot write .*m\.pt2") as refusal:
        check_target(tmp_path / "m.pt2")
    assert "may not be written to" in refusal.value.got


def test_folders_are_made_with_their_parents_but_not_in_place_of_a_file(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("content")
    for taken in ("file", "file/below"):
        with pytest.raises(OutputError, match="cannot make the folder"):
            make_folder(tmp_path / taken)
    assert (tmp_path / "file").read_text() == "content"
