import pytest

from nncompress.errors import OutputError
from nncompress.files.ledger import Ledger


def write(ledger, name, text):
    with ledger.writing(name) as path:
        path.write_text(text)


def test_what_was_written_may_be_replaced_and_deleted_by_a_later_process(tmp_path):
    write(Ledger(tmp_path), "a", "one")
    write(Ledger(tmp_path), "a", "two")
    later = Ledger(tmp_path)
    assert later.names == ("a",)
    assert later.others() == []
    assert later.remove("a")
    assert {path.name for path in tmp_path.iterdir()} == {".nncompress.json"}


@pytest.mark.parametrize("how", ["edited", "swapped for a link", "put there first"])
def test_what_the_user_changed_is_neither_replaced_nor_deleted(tmp_path, how):
    ledger = Ledger(tmp_path)
    if how == "put there first":
        (tmp_path / "a").write_text("mine")
    else:
        write(ledger, "a", "ours")
        if how == "edited":
            (tmp_path / "a").write_text("mine")
        else:
            (tmp_path / "a").rename(tmp_path / "b")
            (tmp_path / "a").symlink_to("b")
    before = (tmp_path / "a").read_text()
    assert "a" in ledger.others()
    with pytest.raises(OutputError, match="not overwritten"):
        write(ledger, "a", "new")
    assert not ledger.remove("a") or how == "put there first"
    assert (tmp_path / "a").read_text() == before


def test_a_process_killed_before_or_after_the_file_appeared_leaves_nothing_of_others(tmp_path, monkeypatch):
    """The record names the old and the new content until the next writing."""
    ledger = Ledger(tmp_path)
    write(ledger, "a", "one")

    def write_half():
        with ledger.writing("a") as path:
            path.write_text("two")
            monkeypatch.setattr("nncompress.files.atomic._move", killed)

    moves = []

    def killed(*arguments):
        moves.append(arguments)
        raise InterruptedError(4, "killed")

    with pytest.raises(OutputError):
        write_half()
    assert moves
    monkeypatch.undo()
    assert Ledger(tmp_path).others() == []
    write(Ledger(tmp_path), "a", "three")
    assert (tmp_path / "a").read_text() == "three"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"files": {"a": 1}}', b"[" * 9000])
def test_a_damaged_record_is_told_in_one_message(tmp_path, content):
    (tmp_path / ".nncompress.json").write_bytes(content)
    with pytest.raises(OutputError, match="cannot read"):
        Ledger(tmp_path)
    assert (tmp_path / ".nncompress.json").read_bytes() == content
