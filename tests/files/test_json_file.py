"""Records of ours: what is written is what the next command reads."""

from __future__ import annotations

import json

import pytest

from nncompress.errors import VerificationError
from nncompress.files.bounded_text import read_json
from nncompress.files.json_file import write_json


def test_what_was_written_is_read_again(tmp_path):
    value = {"a": (1, 2.5, float("inf"), None), "ü": [True, "x\n"], "nan": float("nan"), "b": 2**64 - 1}
    write_json(tmp_path / "a.json", value)
    assert json.dumps(read_json(tmp_path / "a.json")) == json.dumps(value)


@pytest.mark.parametrize("value", [{"a": 2**64}, [[[]]] * 3 + [eval("[" * 40 + "]" * 40)], "x" * 200])
def test_what_its_reader_would_refuse_is_not_put_in_place(value, tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(VerificationError, match="could not be read back"):
        write_json(tmp_path / "a.json", value, most_bytes=150 if isinstance(value, str) else 1000)
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
