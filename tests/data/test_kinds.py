"""One table of the kinds of data: each claims its own, and what none claims is refused with all of them."""

from __future__ import annotations

import numpy as np
import pytest

from nncompress.data import open_data
from nncompress.data.kind import Asked
from nncompress.data.sources import FORMS, KINDS
from nncompress.data.spec import is_code
from nncompress.errors import DataError


def test_what_no_kind_claims_is_refused_with_all_forms(tmp_path):
    other = tmp_path / "notes.rtf"
    other.write_text("{}")
    for asked, says in ((other, "not a kind of data"), (tmp_path / "gone.npz", "no data at")):
        with pytest.raises(DataError, match=says) as refused:
            open_data(str(asked))
        assert refused.value.expected == FORMS
    assert all(kind.form in FORMS for kind in KINDS)
    assert not any(kind.claims(Asked("gone", str(tmp_path / "gone"))) for kind in KINDS)


@pytest.mark.parametrize(
    ("asked", "takes"), [("d.npz?split=train", "leave out"), ("mnist:.?part=1", "it takes split")]
)
def test_an_option_that_a_kind_does_not_take_is_refused(tmp_path, monkeypatch, asked, takes):
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", x=np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match=r"takes no options|unknown option") as refused:
        open_data(asked)
    assert takes in refused.value.remedy


def test_only_what_runs_code_is_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", x=np.zeros((3, 2), np.float32))
    assert is_code("package.module:samples")
    assert is_code("own.py:samples")
    assert not any(map(is_code, ("d.npz", "d.npz?half=1", "mnist:DIR", ".", "gone.csv?y=a")))


def test_the_next_step_is_named(tmp_path, monkeypatch):
    """Of code without its function, of texts without a tokenizer, of sounds without transcripts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("")
    (tmp_path / "reviews.csv").write_text("text,label\ngood,1\nbad,0\n")
    (tmp_path / "lines.txt").write_text("good\n")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(b"")
    for asked, step in {
        "own.py": "own.py:function",
        "reviews.csv": "--tokenizer DIR",
        "lines.txt": "--tokenizer and the folder",
        "clips?vocabulary=v.json": "a .txt beside each sound",
    }.items():
        with pytest.raises(DataError) as refused:
            open_data(asked)
        assert step in refused.value.remedy, asked
