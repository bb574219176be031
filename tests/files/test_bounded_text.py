"""Small text files: regular, of bounded size and depth, or refused in a few words at once."""

from __future__ import annotations

import os

import pytest

from nncompress.files.bounded_text import Unreadable, bounded, check_regular, read_json, read_text


def test_json_is_read(tmp_path):
    path = tmp_path / "record.json"
    path.write_text('\ufeff{"é": [1, 2.5, null, {"a": true}]}', encoding="utf-8")
    assert read_json(path) == {"é": [1, 2.5, None, {"a": True}]}
    assert check_regular(path) == path.stat().st_size


def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for a writer
    for path, what in [
        (tmp_path / "fifo", "a FIFO"),
        (tmp_path, "a directory"),
        ("/dev/zero", "a device"),
        (tmp_path / "missing", "no such file or directory"),
        (tmp_path / ("x" * 300), "file name too long"),
        ("a\0b", "a name that no file can have"),
    ]:
        with pytest.raises(Unreadable, match=f"^{what}$"):
            read_text(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[" * 100_000, "nested more than 32 deep"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested more than 32 deep"),
        (b"[1" + b"0" * 30 + b"]", "an integer of 31 digits"),
        (b"[1" + b"0" * 5000 + b"]", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", r"no UTF-8 text \(byte 0\)"),
        (b" " * 101_000, "more than 100999 bytes"),
    ],
)
def test_hostile_content_is_refused(content, what, tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=what):
        read_json(path, most_bytes=100_999)


def test_depth_is_counted_inclusively():
    assert bounded([[1]], most_depth=2) == [[1]]
    with pytest.raises(Unreadable):
        bounded([[1]], most_depth=1)
