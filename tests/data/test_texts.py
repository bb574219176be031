"""Texts become token ids as the tokenizers library makes them."""

import pytest
import torch

from nncompress import extras
from nncompress.data import open_data
from nncompress.errors import DataError, MissingExtraError
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
    with pytest.raises(DataError, match="&length=128"):
        open_data(reviews, open_ended)
    assert whole(open_data(f"{reviews}&length=5", open_ended)).inputs[0].shape == (3, 5)
    assert whole(open_data(f"{reviews}&length=2")).inputs[0].dtype == torch.int64


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


def test_the_extra_is_named(reviews, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    with pytest.raises(MissingExtraError, match=r"nncompress\[text\]"):
        open_data(f"{reviews}&length=2")
