import os
import threading
import time

import pytest

from nncompress.errors import OutputError
from nncompress.files.folders import folder_to_fill
from nncompress.files.lock import LOCK, alone_in


def test_a_lock_leaves_nothing_behind_and_keeps_others_out(tmp_path):
    with alone_in(tmp_path) as alone:
        assert alone
        with pytest.raises(OutputError, match="another process is writing"), alone_in(tmp_path):
            pass
        assert os.listdir(tmp_path) == [LOCK]  # which the refused one has not taken away
    assert os.listdir(tmp_path) == []


def test_those_that_wait_for_a_lock_hold_it_one_after_another(tmp_path):
    """Each removes the file that the others have open: a lock of a removed file is none."""
    inside, most, wrong = [], [], []

    def work():
        try:
            for _ in range(5):
                with alone_in(tmp_path, wait=300):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.pop()
        except OutputError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (wrong, len(most), max(most)) == ([], 20, 1)


def test_what_a_killed_one_left_is_taken(tmp_path):
    (tmp_path / LOCK).touch()
    with alone_in(tmp_path) as alone:
        assert alone
    assert os.listdir(tmp_path) == []


def test_a_folder_that_nothing_was_put_into_goes_with_its_parents(tmp_path):
    def fail_after(content):
        with folder_to_fill(tmp_path / "a" / "b") as folder, alone_in(folder):
            for name in content:
                (folder / name).touch()
            raise KeyError

    for content in ((), ("kept",)):
        with pytest.raises(KeyError):
            fail_after(content)
        assert (tmp_path / "a" / "b").exists() == bool(content)
