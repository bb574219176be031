"""Directories of transformers, and architectures of timm and torchvision by name."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nncompress import extras
from nncompress.errors import (
    MissingExtraError,
    ModelFileError,
    UnsafeFileError,
    UnsupportedError,
    UsageError,
)
from nncompress.loading import load_model
from nncompress.loading.state_dict import architecture

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
    assert "batch" in model.dynamic
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
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "w.pt")
    with pytest.raises(MissingExtraError, match=r"nncompress\[timm\]"):
        load_model(tmp_path / "w.pt", arch="timm:resnet18")


@pytest.fixture
def torchvision(monkeypatch):
    """What is called of torchvision.models, so that the tests need no such package."""

    def two(*, weights=None, weights_backbone="downloads", num_classes=2):
        assert weights is None
        assert weights_backbone is None
        return nn.Linear(3, num_classes)

    package = ModuleType("torchvision")
    package.models = SimpleNamespace(
        list_models=lambda: ["two"],
        get_model_builder=lambda name: two,
        get_model=lambda name, **settings: two(**settings),
    )
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setattr(architecture, "need", lambda extra, what: None)


def test_an_architecture_by_name_takes_weights_and_settings(torchvision, tmp_path):
    weights = nn.Linear(3, 5).state_dict()
    torch.save(weights, tmp_path / "w.pt")
    model = load_model(tmp_path / "w.pt", arch="torchvision:two?num_classes=5", input_shapes="1x3")
    torch.testing.assert_close(model(torch.ones(1, 3)), weights["weight"].sum(1)[None] + weights["bias"])


def test_another_name_says_which_are_close(torchvision, tmp_path):
    with pytest.raises(UsageError, match=r"no architecture 'twoo'(.|\n)*close are: two"):
        architecture.build_architecture("torchvision:twoo")
    with pytest.raises(UsageError, match="cannot build it"):
        architecture.build_architecture("torchvision:two?colour=red")
    with pytest.raises(ModelFileError, match=r"--arch timm:resnet18"):
        load_model("timm:resnet18")
