"""Sounds with transcripts: what is said, spelled by a model of CTC and held against it word by word."""

from __future__ import annotations

import json
import wave
from unicodedata import normalize

import numpy as np
import pytest
import torch
from torch import nn

import nncompress
from nncompress.cli.app import run
from nncompress.data import open_data
from nncompress.data.vocabulary import open_vocabulary
from nncompress.errors import DataError, ExitCode

LETTERS = "abcdehlorw"
SAID = ("hello world", "a cab", "real doll")
SYMBOLS = ["<pad>", *LETTERS, "|"]


class Speller(nn.Module):
    """The number of a symbol is the amplitude of 4 samples: scores [N, T, C], or [N, C, T]."""

    def __init__(self, symbols=12, time_last=False):
        super().__init__()
        self.heard = nn.Conv1d(1, 1, 4, 4, bias=False)
        nn.init.constant_(self.heard.weight, 32 / 4)
        self.register_buffer("numbers", torch.arange(float(symbols)))
        self.time_last = time_last

    def forward(self, sound):
        scores = -((self.heard(sound[:, None])[:, 0, :, None] - self.numbers) ** 2)
        return scores.transpose(1, 2) if self.time_last else scores


def spoken(path, text, symbols=SYMBOLS, blank=0):
    numbers = [n for c in text for n in (symbols.index("|" if c == " " else c), blank)]
    samples = np.repeat(np.array(numbers), 4) * 1024  # of 32768
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.astype("<i2").tobytes())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({s: n for n, s in enumerate(SYMBOLS)}))
    return tmp_path


def folder(here, says):
    (here / "clips").mkdir()
    for number, (text, said) in enumerate(zip(SAID, says)):
        spoken(here / "clips" / f"{number}.wav", text)
        (here / "clips" / f"{number}.txt").write_text(said + "\n")
    return "clips?vocabulary=vocab.json"


def librispeech(here, says):
    for number, (text, said) in enumerate(zip(SAID, says)):
        place = here / "dev" / f"{number}" / "7"
        place.mkdir(parents=True)
        spoken(place / f"{number}-7-0000.wav", text)
        (place / f"{number}-7.trans.txt").write_text(f"{number}-7-0000 {said.upper()}\n")
    return "dev?vocabulary=vocab.json"


def table(here, says):
    folder(here, says)
    rows = "".join(f"{number}.wav\t{said}\n" for number, said in enumerate(says))
    (here / "all.tsv").write_text("path\tsentence\n" + rows)
    return "all.tsv?audio=path&text=sentence&vocabulary=vocab.json"


def lines(here, says):
    folder(here, says)
    rows = [json.dumps({"file": f"clips/{number}.wav", "text": said}) for number, said in enumerate(says)]
    (here / "all.jsonl").write_text("\n".join(rows))
    return "all.jsonl?audio=file&vocabulary=vocab.json"


def parquet(here, says):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder(here, says)
    rows = [
        {"audio": {"bytes": (here / "clips" / f"{n}.wav").read_bytes(), "path": None}, "text": said}
        for n, said in enumerate(says)
    ]
    pq.write_table(pa.Table.from_pylist(rows), here / "all.parquet")
    return "all.parquet?audio=audio&vocabulary=vocab.json"


@pytest.mark.parametrize("layout", [folder, librispeech, table, lines, parquet])
def test_words_are_counted_in_every_layout(here, layout):
    right = nncompress.evaluate(Speller(), layout(here, SAID), metric="wer", input="Bx88")
    assert (right.metric, right.value, right.samples) == ("wer", 0.0, 3)


def test_a_wrong_word_a_missing_and_a_further_one(here, capsys):
    """Of 6 words: "word" for "world", "a" too many, "doll" missing."""
    asked = folder(here, ("hello word", "cab", "real doll abc"))
    for time_last in (False, True):
        found = nncompress.evaluate(Speller(time_last=time_last), asked, metric="wer", input="Bx88")
        assert found.value == pytest.approx(3 / 6)
        assert found.interval.low <= found.value <= found.interval.high
    nncompress.export(nncompress.load(Speller(), input="Bx88"), "m.pt2")
    capsys.readouterr()
    assert run(["eval", "m.pt2", "m.pt2", "--data", asked, "--metric", "wer", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["models"][1]["paired"]["difference"]["value"] == 0
    assert "compared in lower case" in " ".join(err.split())
    assert run(["eval", "m.pt2", "--data", "clips", "--metric", "wer"]) == ExitCode.DATA
    assert "?vocabulary=FILE" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("blank", ["first", "last"])
def test_a_blank_that_the_vocabulary_lacks(here, blank):
    symbols = [*LETTERS, "|"]
    (here / "tokens.txt").write_text("\n".join(symbols))
    (here / "clips").mkdir()
    numbered = ["_", *symbols] if blank == "first" else [*symbols, "_"]
    spoken(here / "clips" / "a.wav", "a cab", numbered, numbered.index("_"))
    (here / "clips" / "a.txt").write_text("a cab")
    asked = "clips?vocabulary=tokens.txt"
    with pytest.raises(DataError, match="which symbol is the blank") as refused:
        open_data(asked)
    assert "&blank=" in refused.value.remedy
    assert nncompress.evaluate(Speller(), f"{asked}&blank={blank}", metric="wer", input="Bx40").value == 0
    with pytest.raises(DataError, match="another number of symbols"):
        nncompress.evaluate(Speller(13), f"{asked}&blank={blank}", metric="wer", input="Bx40")


def test_what_is_said_is_not_cut_off(here):
    asked = folder(here, SAID)
    with pytest.raises(DataError, match="longer than the model takes"):
        nncompress.evaluate(Speller(), asked, metric="wer", input="Bx40")
    assert nncompress.evaluate(Speller(), asked, metric="wer").value == 0  # free: as long as the longest
    (here / "clips" / "1.txt").unlink()
    with pytest.raises(DataError, match="has no transcript"):
        open_data(asked)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("vocab.json", '{"<pad>": 0, "|": 1, "A": 2, "</s>": 3}', (" ", "A", "upper")),
        ("tokens.txt", "<blk> 0\n▁the 1\ns 2\n", (" the", "s", "lower")),
        ("list.json", '["<blank>", " ", "A", "b"]', (" ", "A", "")),
    ],
)
def test_vocabularies_as_they_are_kept(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    found = open_vocabulary(str(tmp_path / name))
    assert (*(each.decode() for each in found.symbols[1:3]), found.case) == expected
    assert (found.blank, len(found.notes)) == (0, bool(found.case))


@pytest.mark.parametrize(
    ("symbols", "said", "words"),
    [
        (["<pad>", "play", "##ing", "##é", "|"], [1, 2, 4, 1, 3], ["playing", "|", "playé"]),
        (["<pad>", "Ġa", "b", "Ġ", "Ã", "©", "|"], [1, 2, 1, 6, 3, 4, 0, 5], ["ab", "a|", "é"]),
        (["<pad>", "▁a", "<0xC3>", "<0xA9>", "b"], [1, 2, 3, 1, 4], ["aé", "ab"]),
        (["<pad>", "pl@@", "ay", "a"], [1, 2, 3], ["play", "a"]),
        (["<pad>", "pl", "ay</w>", "a</w>"], [1, 2, 3], ["play", "a"]),
        (["<pad>", "e", "\u0301", "|", "Ġ"], [1, 2, 3, 1, 4], ["é", "eĠ"]),
    ],
)
def test_subwords_are_joined_to_words(tmp_path, symbols, said, words):
    (tmp_path / "v.json").write_text(json.dumps(symbols))
    found = open_vocabulary(str(tmp_path / "v.json"))
    assert found.words(found.text(said)) == words
    assert found.words(normalize("NFD", " ".join(words))) == words


def test_what_is_taken_for_granted_of_a_vocabulary_is_said(tmp_path):
    (tmp_path / "v.txt").write_text("<pad> 0\n<eps> 1\na 2\nB 3\n")
    file = str(tmp_path / "v.txt")
    blank, spaces = open_vocabulary(file).notes
    assert "<eps> is taken as the blank of CTC, where <pad> would do, too; &blank=<eps> says so" in blank
    assert "no symbol writes a space" in spaces
    assert open_vocabulary(file, "<eps>").notes == (spaces,)
    with pytest.raises(DataError, match="vocabulary= names no file"):
        open_vocabulary("")


def test_texts_without_a_word_count_in_no_interval(here):
    """5 words too many of 1: samples drawn without that word have no rate."""
    asked = folder(here, ("", "", "doll"))
    found = nncompress.evaluate(Speller(), asked, metric="wer", input="Bx88")
    assert found.value == 5.0
    assert found.interval.low == 1.0
    assert 5 <= found.interval.high < 20
    (here / "clips" / "2.txt").write_text("a")
    assert nncompress.evaluate(Speller(), asked, metric="wer", input="Bx88").value == 6.0
    for number in range(3):
        (here / "clips" / f"{number}.txt").write_text(" \n")
    with pytest.raises(DataError, match="no word is said"):
        nncompress.evaluate(Speller(), asked, metric="wer", input="Bx88")


@pytest.mark.parametrize("content", ['{"a": 0, "b": 2}', "[]", '"a"', '{"a": [0]}', "{"])
def test_what_is_no_vocabulary_is_refused(tmp_path, content):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(DataError, match="vocabulary"):
        open_vocabulary(str(tmp_path / "v.json"))
