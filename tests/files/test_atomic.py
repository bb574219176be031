import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest

from nncompress.errors import OutputError
from nncompress.files import atomic, leftovers
from nncompress.files.atomic import replacing

KILLED = """
import os, signal, sys
from nncompress.files.atomic import replacing
with replacing(sys.argv[1]) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left_in(path):
    return list(path.glob(".nncompress-*.part"))


def test_what_a_killed_writer_left_goes_with_the_next_one_of_any_name(tmp_path):
    target = tmp_path / "m.pt2"
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False).returncode == -9
    (left,) = left_in(tmp_path)
    assert (left / "new" / "m.pt2").read_text() == "half"
    assert not target.exists()
    with replacing(tmp_path / "other.pt2") as path:
        path.write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == ["other.pt2"]


def test_what_was_left_by_a_writer_that_was_killed_before_it_signed_goes(tmp_path):
    empty, unsigned = (tmp_path / f".nncompress-{name}.part" for name in "ab")
    for folder in (empty, unsigned):
        folder.mkdir()
    (unsigned / "writer.json").touch()
    leftovers.remove_leftovers(tmp_path)
    assert not left_in(tmp_path)


@pytest.mark.parametrize("found", ["folder", "record"])
def test_a_writer_that_was_taken_for_a_leftover_while_it_signed_begins_anew(tmp_path, monkeypatch, found):
    make, sign = atomic.tempfile.mkdtemp, atomic.lock
    cleaned = []

    def clean(*arguments, **options):
        result = make(**options) if found == "folder" else sign(*arguments)
        if not cleaned:
            cleaned.append(True)
            with monkeypatch.context() as real:
                real.setattr(leftovers, "lock", lambda descriptor: True)
                leftovers.remove_leftovers(tmp_path)
        return result

    owner, name = (atomic.tempfile, "mkdtemp") if found == "folder" else (atomic, "lock")
    monkeypatch.setattr(owner, name, clean)
    with replacing(tmp_path / "m.pt2") as path:
        path.write_text("whole")
    assert cleaned
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]


def test_a_writer_at_work_is_left_alone(tmp_path):
    target = tmp_path / "m.pt2"
    with replacing(target) as slow:
        os.utime(slow.parent.parent, (0, 0))
        with replacing(target) as quick:
            quick.write_text("quick")
        slow.write_text("slow")
    assert target.read_text() == "slow"
    assert not left_in(tmp_path)


def test_without_locks_a_writer_is_dead_whose_process_is_no_more_on_this_host(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "lock", lambda descriptor: None)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    writers = {"dead": (here, gone.pid), "alive": (here, os.getpid()), "far": ("another", gone.pid)}
    for name, (host, pid) in writers.items():
        folder = tmp_path / f".nncompress-{name}.part"
        (folder / "new").mkdir(parents=True)
        (folder / "writer.json").write_text(json.dumps({"writer": "nncompress", "host": host, "pid": pid}))
    leftovers.remove_leftovers(tmp_path)
    assert {folder.name for folder in left_in(tmp_path)} == {
        ".nncompress-alive.part",
        ".nncompress-far.part",
    }


def test_what_only_looks_like_a_leftover_is_the_users(tmp_path):
    folder = tmp_path / ".nncompress-mine.part"
    (folder / "new").mkdir(parents=True)
    files = [folder / "notes.txt", folder / "writer.json", folder / "new" / "m.pt2"]
    for file in files:
        file.write_text('{"writer": "me"}')
    stray = tmp_path / ".nncompress-file.part"
    stray.write_text("a file")
    os.utime(folder, (0, 0))
    with replacing(tmp_path / "m.pt2") as path:
        path.write_text("new")
    assert all(file.exists() for file in (*files, stray))


def test_a_users_file_in_a_dead_writers_folder_stays(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "m.pt2")], check=False)
    (left,) = left_in(tmp_path)
    (left / "notes.txt").write_text("mine")
    with replacing(tmp_path / "m.pt2") as path:
        path.write_text("new")
    assert (left / "notes.txt").read_text() == "mine"


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    longest = tmp_path / ("x" * 251 + ".pt2")
    with replacing(longest) as path:
        path.write_text("whole")
    assert longest.read_text() == "whole"
    with pytest.raises(OutputError, match="cannot write"), replacing(tmp_path / ("x" * 252 + ".pt2")):
        pass


def test_the_new_file_has_the_permissions_of_the_old_one(tmp_path):
    target = tmp_path / "m.pt2"
    for mode in (0o600, 0o664):
        target.touch()
        target.chmod(mode)
        with replacing(target) as path:
            path.write_text("new")
        assert target.stat().st_mode & 0o777 == mode


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "old").write_text("old")
    for name, leads_to in (("link", "old"), ("broken", "nothing"), ("loop", "loop")):
        link = tmp_path / name
        link.symlink_to(leads_to)
        with replacing(link) as path:
            path.write_text("new")
        assert not link.is_symlink()
        assert link.read_text() == "new"
    assert (tmp_path / "old").read_text() == "old"


def test_file_and_directory_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    """A power cut leaves the old file or the new one."""
    steps = []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor):
        steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def record_replace(source, target):
        steps.append(f"move {os.path.basename(source)}")
        replace(source, target)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("the names of open files are read from /proc")
    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    with replacing(tmp_path / "m.onnx") as path:
        path.write_text("graph")
        path.with_name("m.onnx.data").write_text("weights")
    assert sorted(steps[:2]) == ["m.onnx", "m.onnx.data"]
    assert steps[2:] == ["new", "writer.json", steps[4], "move m.onnx.data", "move m.onnx", tmp_path.name]


@pytest.mark.parametrize("call", ["tempfile.mkdtemp", "os.fsync", "os.replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_system_call_that_fails_is_one_error_and_leaves_the_old_file(tmp_path, monkeypatch, call, code):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    target = tmp_path / "m.pt2"
    target.write_text("old")
    monkeypatch.setattr(call, fail)
    with pytest.raises(OutputError, match=r"cannot write .*m\.pt2") as refusal, replacing(target) as path:
        path.write_text("new")
    assert refusal.value.got == os.strerror(code)
    assert target.read_text() == "old"
    assert not left_in(tmp_path)


def test_a_file_that_is_written_to_be_moved_is_named_as_the_user_knows_it(tmp_path):
    with (
        pytest.raises(OutputError, match=rf"cannot write {tmp_path / 'm.pt2'}\n"),
        replacing(tmp_path / "m.pt2") as outer,
        replacing(outer),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_folder_of_temporary_files_is_named_with_its_remedy(tmp_path, monkeypatch):
    scratch, target = tmp_path / "scratch", tmp_path / "out" / "m.pt2"
    target.parent.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(OutputError, match=r"cannot write .*m\.pt2") as refusal, replacing(target):
        raise OSError(errno.ENOSPC, "No space left on device", str(scratch / "half"))
    assert refusal.value.got == f"No space left on device: {scratch / 'half'}"
    assert "TMPDIR=" in refusal.value.remedy


def test_where_no_folder_takes_temporary_files_one_has_to_be_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(OutputError) as refusal, replacing(tmp_path / "m.pt2"):
        tempfile.mkdtemp()
    assert "TMPDIR=" in refusal.value.remedy


def test_a_name_that_is_too_long_is_one_error_that_says_so(tmp_path):
    with pytest.raises(OutputError) as problem, replacing(tmp_path / "a.ort") as path:
        path.with_name("n" * 256).write_text("beside it")
    assert problem.value.remedy == "give a shorter name"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_deleted_meanwhile_is_one_error(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()

    def write_and_lose():
        with replacing(folder / "m.pt2") as path:
            path.write_text("new")
            shutil.rmtree(folder)

    with pytest.raises(OutputError, match="cannot write"):
        write_and_lose()
    assert not folder.exists()


def test_an_interrupt_just_before_the_folder_is_removed_leaves_nothing(tmp_path, monkeypatch):
    real, calls = atomic.held_back, []

    def interrupted():
        calls.append(len(calls))
        if len(calls) == 3:  # of the first, the folder is made; in the second, the file is moved
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(atomic, "held_back", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as path:
        path.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
