"""Directories of transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nncompress import extras
from nncompress.cli.work.model_files import open_model
from nncompress.errors import (
    DataError,
    MissingExtraError,
    ModelFileError,
    UnsafeFileError,
    UnsupportedError,
    UsageError,
)
from nncompress.loading import load_model
from nncompress.loading.huggingface import in_cache

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "max_position_embeddings": 8}
BERT = {**SIZES, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    hf = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    model = hf.BertForSequenceClassification(hf.BertConfig(**BERT)).eval()
    model.save_pretrained(folder)
    return folder, model


def test_a_text_classifier_takes_ids_and_mask_and_gives_logits(bert):
    folder, original = bert
    said = []
    model = load_model(folder, notice=said.append)
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask"]
    assert model.outputs == ("logits",)
    assert model.dynamic.keys() == {"batch", "length"}
    assert model.dynamic["length"] == (1, 8)
    assert "input_ids:1x8:int64,attention_mask:1x8:int64" in said[0]
    ids, mask = torch.randint(0, 20, (3, 8)), torch.tensor([[1] * n + [0] * (8 - n) for n in (8, 3, 5)])
    with torch.no_grad():
        expected = original(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(model(ids, mask), expected, rtol=1e-4, atol=1e-5)
    names = {name for name, _ in model.graph_module.named_parameters()}
    assert names <= {name for name, _ in original.named_parameters()}


def test_inputs_are_those_that_are_named(bert):
    model = load_model(bert[0], input_shapes="token_type_ids:1x4:int64,input_ids:1x4:int64")
    assert [spec.name for spec in model.inputs] == ["token_type_ids", "input_ids"]
    with pytest.raises(UsageError, match="no input 'pixels'"):
        load_model(bert[0], input_shapes="pixels:1x4")


def test_more_tokens_than_positions_are_refused(bert):
    with pytest.raises(DataError, match="at most 8, as max_position_embeddings"):
        load_model(bert[0], input_shapes="input_ids:1x9:int64")
    with pytest.raises(DataError, match="9 tokens"):
        load_model(bert[0], example_inputs=lambda names: (torch.zeros(2, 9, dtype=torch.int64),) * len(names))


def copied(folder, place, config=None, weights=None):
    place.mkdir()
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (place / "config.json").write_text(json.dumps(settings))
    stored = load_file(folder / "model.safetensors")
    save_file(weights(stored) if weights else stored, place / "model.safetensors", {"format": "pt"})
    return place


def test_weights_that_would_be_random_are_refused(bert, tmp_path):
    headless = copied(
        bert[0], tmp_path / "a", weights=lambda w: {k: v for k, v in w.items() if "classifier" not in k}
    )
    with pytest.raises(ModelFileError, match=r"missing(.|\n)*classifier\.bias"):
        load_model(headless)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"architectures": ["NoSuchModel"]}, ModelFileError, "NoSuchModel"),
        ({"architectures": ["NoSuchModel"], "auto_map": {"AutoModel": "a.B"}}, UnsafeFileError, "auto_map"),
        ({"architectures": ["logging"]}, ModelFileError, "no class of transformers"),
        ({"hidden_size": 16}, ModelFileError, "BertForSequenceClassification"),
    ],
)
def test_what_does_not_belong_together_is_a_message(bert, tmp_path, config, error, message):
    with pytest.raises(error, match=message):
        load_model(copied(bert[0], tmp_path / "a", config))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ModelFileError, "cannot be read"),
        ("[]", ModelFileError, "no configuration"),
        (
            '{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}',
            UnsupportedError,
            "gptq",
        ),
    ],
)
def test_a_configuration_that_is_none(tmp_path, text, error, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=message):
        load_model(tmp_path)


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(MissingExtraError, match=r"nncompress\[huggingface\]"):
        load_model(tmp_path)


def test_the_id_of_a_model_in_the_cache_is_its_name_and_others_are_refused(bert, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub" / "models--org--tiny-2.5"
    copied(bert[0], tmp_path / "made")
    for folder in ("refs", "snapshots", "blobs"):
        (place / folder).mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir()
    for file in (tmp_path / "made").iterdir():  # as the cache has them: links to blobs
        file.rename(place / "blobs" / file.name)
        (place / "snapshots" / "abc" / file.name).symlink_to(place / "blobs" / file.name)
    opened = open_model("org/tiny-2.5")
    assert opened.model.outputs == ("logits",)
    assert opened.stem == "tiny-2.5"
    with pytest.raises(ModelFileError, match="hf download org/other"):
        load_model("org/other")
    for name in ("my--model.pt", "foo..bar.pt", "model-", "x" * 97):  # names of files, and no ids
        assert in_cache(Path(name)) is None


@pytest.mark.parametrize(
    ("kept", "error", "message"),
    [
        ("model.safetensors.index.json", ModelFileError, "holds no weights"),
        ("pytorch_model.bin", UnsafeFileError, "pickled weights are not opened"),
    ],
)
def test_a_folder_without_its_weights_says_which_are_missing(bert, tmp_path, kept, error, message):
    (tmp_path / "config.json").write_text((bert[0] / "config.json").read_text())
    (tmp_path / kept).write_text("{}")
    with pytest.raises(error, match=message) as refused:
        load_model(tmp_path)
    assert "save_pretrained('folder')" in refused.value.remedy


def test_a_sharded_directory_is_one_model_and_roberta_counts_positions_from_its_padding(tmp_path):
    hf = pytest.importorskip("transformers")
    original = hf.RobertaForMaskedLM(hf.RobertaConfig(**{**BERT, "pad_token_id": 1})).eval()
    original.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = load_model(tmp_path)
    assert model.dynamic["length"] == (1, 6)  # of 8 positions
    ids = torch.randint(2, 20, (2, 6))
    with torch.no_grad():
        expected = original(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model(ids, torch.ones_like(ids)), expected, rtol=1e-4, atol=1e-5)
