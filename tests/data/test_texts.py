"""Texts become token ids as the tokenizers library makes them."""

import base64
import json

import pytest
import torch

from nncompress import extras
from nncompress.cli.app import run
from nncompress.data import open_data
from nncompress.data.sources import texts
from nncompress.errors import DataError, ExitCode, MissingExtraError
from nncompress.ir import InputSpec


@pytest.fixture
def reviews(tmp_path):
    (tmp_path / "t.csv").write_text('review,label\n"good, film",up\nbad bad,down\nunseen good film bad,up\n')
    return f"{tmp_path}/t.csv?text=review&tokenizer={tmp_path}"


@pytest.fixture
def tokenizer(tmp_path):
    lib = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "good": 2, "bad": 3, "film": 4, ",": 5}
    made = lib.Tokenizer(lib.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = lib.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))


def whole(dataset):
    (batch,) = dataset.batches(len(dataset))
    return batch


def test_ids_mask_and_classes(reviews, tokenizer):
    names = ("input_ids", "attention_mask", "token_type_ids")
    data = open_data(reviews, [InputSpec(name, "int64", ("batch", 3)) for name in names])
    ids, mask, kinds = whole(data).inputs
    assert ids.tolist() == [[2, 5, 4], [3, 3, 1], [0, 2, 4]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert kinds.tolist() == [[0] * 3] * 3
    assert data.class_names == ("down", "up")
    assert whole(data).labels.tolist() == [1, 0, 1]


def test_the_length_is_stated_where_the_model_leaves_it_open(reviews, tokenizer):
    open_ended = [InputSpec("tokens", "int64", ("batch", "n"))]
    with pytest.raises(DataError, match="length=128"):
        open_data(reviews, open_ended)
    assert whole(open_data(f"{reviews}&length=5", open_ended)).inputs[0].shape == (3, 5)
    assert whole(open_data(f"{reviews}&length=2")).inputs[0].dtype == torch.int64


def test_each_line_of_a_text_file_is_a_sample(reviews, tokenizer, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("good film\n\nbad, bad film\r\n", encoding="utf-8")
    data = open_data(f"{lines}?tokenizer={tmp_path}&length=3", names=["ids"])
    assert whole(data).inputs[0].tolist() == [[2, 4, 1], [3, 5, 3]]
    assert not data.has_labels
    with pytest.raises(DataError, match="--tokenizer DIR"):
        open_data(f"{lines}?length=3")
    (tmp_path / "t.jsonl").write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n')
    data = open_data(f"{tmp_path}/t.jsonl?tokenizer={tmp_path}&length=1", names=["ids"])
    assert whole(data).inputs[0].tolist() == [[2], [3]]  # the column called text
    assert whole(data).labels.tolist() == [1, 0]


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = torch.nn.Embedding(6, 8), torch.nn.Linear(8, 6)

    def forward(self, ids):
        return self.out(torch.relu(self.table(ids)))


def test_the_tokenizer_is_an_option_of_every_command_that_takes_data(
    reviews, tokenizer, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("good film\nbad bad film\nfilm good\n" * 4)
    torch.save(Tagger(), "m.pt")
    data = ["--data", "lines.txt?length=4", "--tokenizer", "."]
    assert run(["quantize", "m.pt", "--trust-pickle", *data]) == ExitCode.OK
    assert run(["eval", "--metric", "perplexity", *data]) == ExitCode.OK
    assert "perplexity" in capsys.readouterr().out
    assert run(["eval", "m.pt", "--trust-pickle", "--tokenizer", "."]) == ExitCode.USAGE
    assert run(["eval", "--data", "lines.txt?length=4&tokenizer=.", "--tokenizer", "."]) == ExitCode.USAGE
    assert run(["eval", "--data", "lines.txt?length=4", "--tokenizer", "a&b"]) == ExitCode.USAGE
    assert "ln -s" in capsys.readouterr().err


def test_what_is_no_tokenizer_or_no_text_is_a_message(reviews, tokenizer, tmp_path):
    with pytest.raises(DataError, match="no column 'title'"):
        open_data(reviews.replace("text=review", "text=title"))
    with pytest.raises(DataError, match="not those of a text"):
        open_data(reviews, [InputSpec(n, "int64", ("batch", 3)) for n in ("input_ids", "bbox")])
    with pytest.raises(DataError, match="a column and a tokenizer"):
        open_data(f"{tmp_path}/t.csv?text=review")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a tokenizer"):
        open_data(f"{reviews}&length=2")


def changed(tmp_path, **changes):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_tokenizer_that_cannot_encode_is_a_message(reviews, tokenizer, tmp_path):
    """Plain Exceptions of the library, and panics of its Rust, which are no Exceptions."""
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    changed(tmp_path, model={**model, "unk_token": "[NONE]"})
    with pytest.raises(DataError, match="cannot encode the texts"):
        open_data(f"{reviews}&length=2")
    endless = {
        "type": "Split",
        "pattern": {"Regex": "(d+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    changed(tmp_path, model=model, pre_tokenizer=endless)
    (tmp_path / "t.csv").write_text("review,label\n" + "d" * 60 + "b,up\n")
    with pytest.raises(DataError, match="cannot encode the texts"):
        open_data(f"{reviews}&length=2")


def test_what_stops_the_program_is_not_taken_for_a_tokenizer_that_fails():
    class Stopped(BaseException):
        pass

    class Tokenizer:
        def encode_batch(self, some):
            raise Stopped("terminated")

    with pytest.raises(Stopped):
        texts._encoded(Tokenizer(), ["a"], 4, "DIR")


def test_more_special_tokens_than_the_length_are_a_message(reviews, tokenizer, tmp_path):
    pads = [{"SpecialToken": {"id": "[PAD]", "type_id": 0}}] * 2
    special = {"[PAD]": {"id": "[PAD]", "ids": [1], "tokens": ["[PAD]"]}}
    single = [*pads, {"Sequence": {"id": "A", "type_id": 0}}]
    changed(
        tmp_path,
        post_processor={
            "type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special
        },
    )  # fmt: skip
    with pytest.raises(DataError, match="does not make 1 tokens"):
        open_data(f"{reviews}&length=1")


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9},
        {"type": "Prepend", "prepend": "a" * 9},
        {"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "a" * 9},
        {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(bytes(4) + b"a" * 9 + b"\0").decode(),
        },
    ],
)
def test_rules_that_make_texts_grow_without_bound_are_refused(reviews, tokenizer, tmp_path, rule):
    changed(tmp_path, normalizer={"type": "Sequence", "normalizers": [rule, rule]})
    with pytest.raises(DataError) as refusal:
        open_data(f"{reviews}&length=2")
    assert "more than 64 characters of one" in str(refusal.value)


def test_rules_that_insert_where_they_match_nothing_double_a_text_each(reviews, tokenizer, tmp_path):
    """And such that published tokenizers have are not refused."""
    doubles = {"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "a"}
    changed(tmp_path, normalizer={"type": "Sequence", "normalizers": [doubles] * 7})
    with pytest.raises(DataError, match="more than 64 characters of one"):
        open_data(f"{reviews}&length=2")
    chars = base64.b64encode(bytes(4) + ("\ufdfa" * 18).encode() + b"\0").decode()  # as Unicode's longest
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
    quotes = {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}
    texts.check_growth({"normalizer": {"type": "Sequence", "normalizers": [quotes, quotes, spaces]}})
    precompiled = {"type": "Precompiled", "precompiled_charsmap": chars}
    texts.check_growth({"normalizer": {"type": "Sequence", "normalizers": [precompiled, spaces]}})


def test_the_memory_that_all_tokens_take_is_asked_for_first(reviews, tokenizer, monkeypatch):
    sizes = []
    monkeypatch.setattr(texts, "check_allocation", lambda size, what: sizes.append(size))
    open_data(f"{reviews}&length=100")
    assert sizes == [2 * 3 * 100 * 8 * 2]  # as parts and as a whole; three texts, two inputs


def test_the_extra_is_named(reviews, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    with pytest.raises(MissingExtraError, match=r"nncompress\[text\]"):
        open_data(f"{reviews}&length=2")
