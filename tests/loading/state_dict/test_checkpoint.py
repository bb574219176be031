"""Checkpoints as training scripts write them: the weights are found, and what is left out is said."""

from __future__ import annotations

import argparse
import collections
import datetime
import json

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrizations

from nncompress.cli.app import run
from nncompress.errors import ModelFileError, UnsafeFileError, UsageError
from nncompress.loading import load_model

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))
"""
X = torch.randn(3, 3, 5, 5)


class Settings:
    """A class of the training script's own."""


class Wrapped(nn.Module):
    def __init__(self, name: str, net: nn.Module) -> None:
        super().__init__()
        setattr(self, name, net)


@pytest.fixture
def arch(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:build"


def built() -> nn.Module:
    namespace: dict = {}
    exec(NET, namespace)
    net = namespace["build"]()
    net(torch.randn(8, 3, 5, 5))
    return net.eval()


def optimizer_state(net):
    optimizer = torch.optim.Adam(net.parameters())
    net(X).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def lightning(net):
    module = Wrapped("model", net)
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": module.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5), "dirpath": "/a"}},
        "optimizer_states": [optimizer_state(net)],
        "lr_schedulers": [],
        "hparams_name": "args",
        "hyper_parameters": argparse.Namespace(lr=0.1, layers=[3, 4]),
    }


def timm(net):
    other = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    args = argparse.Namespace(model="net", opt="sgd")
    return {
        "epoch": 9,
        "arch": "net",
        "state_dict": net.state_dict(),
        "args": args,
        "version": 2,
        "optimizer": optimizer_state(net),
        "state_dict_ema": other,
        "metric": 81.5,
    }


def swa(net):
    return {"model": torch.optim.swa_utils.AveragedModel(net).state_dict(), "rng": torch.get_rng_state()}


CHECKPOINTS = {
    "lightning": lightning,
    "lightning net": lambda net: {"state_dict": Wrapped("net", net).state_dict(), "epoch": 1},
    "timm": timm,
    "ema": lambda net: {"ema": Wrapped("module", net).state_dict(), "updates": 7},
    "model_ema": lambda net: {"model_ema": {"module": net.state_dict(), "decay": 0.9}, "step": 2},
    "swa": swa,
    "data parallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled": lambda net: {"model": Wrapped("_orig_mod", net).state_dict()},
    "distributed, compiled": lambda net: Wrapped("module", Wrapped("_orig_mod", net)).state_dict(),
    "pytorch_model.bin": lambda net: collections.OrderedDict(net.state_dict()),
    "with optimizer": lambda net: {"net": net.state_dict(), "optimizer": optimizer_state(net), "acc": 0.9},
    "best loss": lambda net: {"weights": net.state_dict(), "best": {"loss": torch.tensor(0.1)}},
    "counters beside": lambda net: {**net.state_dict(), "epoch": 3, "args": {"lr": 0.1}},
    "bystanders": lambda net: {
        "model": net.state_dict(),
        "when": datetime.datetime.now(),
        "log": collections.deque([1, 2]),
        "history": collections.defaultdict(list, loss=[0.1]),
        "ids": frozenset([1]),
    },
}


@pytest.mark.parametrize("shape", CHECKPOINTS)
def test_the_weights_of_a_checkpoint(shape, arch, tmp_path):
    net = built()
    path = tmp_path / "checkpoint.bin"
    torch.save(CHECKPOINTS[shape](net), path)
    model = load_model(path, arch=arch, input_shapes="1x3x5x5")
    with torch.no_grad():
        torch.testing.assert_close(model(X), net.eval()(X))


def masked(net):
    torch.nn.utils.prune.l1_unstructured(net[0], "weight", 0.5)
    torch.nn.utils.prune.ln_structured(net[4], "weight", 0.25, n=2, dim=1)


def spectral(net):
    parametrizations.spectral_norm(net[0])
    torch.nn.utils.spectral_norm(net[4])


def normed(net):
    parametrizations.weight_norm(net[0])
    torch.nn.utils.weight_norm(net[4])


@pytest.mark.parametrize("wrap", [masked, spectral, normed])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_that_wrappers_compute(wrap, prefix, arch, tmp_path):
    net = built()
    wrap(net)
    net.train()(X)
    net.eval()
    torch.save({prefix + name: value for name, value in net.state_dict().items()}, tmp_path / "c.pt")
    model = load_model(tmp_path / "c.pt", arch=arch, input_shapes="1x3x5x5")
    with torch.no_grad():
        torch.testing.assert_close(model(X), net(X))


def test_a_spectral_norm_of_a_transposed_convolution(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n return nn.ConvTranspose1d(4, 4, 3)\n"
    )
    net = parametrizations.spectral_norm(nn.ConvTranspose1d(4, 4, 3)).eval()
    torch.save(net.state_dict(), tmp_path / "c.pt")
    model = load_model(tmp_path / "c.pt", arch=f"{tmp_path / 'net.py'}:build", input_shapes="1x4x6")
    x = torch.randn(2, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x))


def test_an_architecture_with_wrappers_of_its_own_keeps_them(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n return nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))\n"
    )
    net = parametrizations.weight_norm(nn.Linear(4, 3))
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "c.pt")
    model = load_model(tmp_path / "c.pt", arch=f"{tmp_path / 'net.py'}:build", input_shapes="1x4")
    x = torch.randn(2, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x))


def test_a_key_says_which_weights_are_meant(arch, tmp_path):
    student, teacher = built(), built()
    path = tmp_path / "c.pt"
    torch.save({"run": {"student": student.state_dict(), "teacher": teacher.state_dict()}}, path)
    with pytest.raises(ModelFileError, match="several tables") as caught:
        load_model(path, arch=arch)
    assert "--weights-key run.student" in str(caught.value)
    for key, net in (("run.student", student), ("run.teacher", teacher)):
        model = load_model(path, arch=arch, weights_key=key, input_shapes="1x3x5x5")
        with torch.no_grad():
            torch.testing.assert_close(model(X), net(X))
    with pytest.raises(UsageError, match="no weights under --weights-key"):
        load_model(path, arch=arch, weights_key="run.nobody")


def test_a_key_may_be_the_beginning_of_names(arch, tmp_path):
    """Lightning modules with a loss or a second network beside the one that is meant."""
    net, path = built(), tmp_path / "c.ckpt"
    state = {f"encoder.{k}": v for k, v in net.state_dict().items()} | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": state, "epoch": 1}, path)
    with pytest.raises(ModelFileError, match="do not fit") as caught:
        load_model(path, arch=arch)
    assert "--weights-key state_dict.encoder" in str(caught.value)
    model = load_model(path, arch=arch, weights_key="state_dict.encoder", input_shapes="1x3x5x5")
    with torch.no_grad():
        torch.testing.assert_close(model(X), net(X))


def test_not_strict_lists_what_is_missing_and_unexpected(arch, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = {"head.weight": torch.ones(2, 4), **built().state_dict()}
    del state["4.bias"]
    torch.save(state, "c.pt")
    command = ["inspect", "c.pt", "--arch", arch, "--input", "1x3x5x5"]
    assert run(command) == 3
    assert "--no-strict" in capsys.readouterr().err
    assert run([*command, "--no-strict"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 missing: 4.bias; 1 unexpected: head.weight" in said
    assert "the values that the factory gave it" in said


@pytest.mark.parametrize("state", [{"other": torch.ones(2)}, {"4.bias": torch.ones(3)}])
def test_not_strict_refuses_what_does_not_fit_at_all(state, arch, tmp_path):
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ModelFileError, match="do not fit"):
        load_model(tmp_path / "c.pt", arch=arch, strict=False)


@pytest.mark.parametrize("keys", [{"weights_key": "x"}])
def test_a_key_for_a_file_without_tables(keys, tmp_path):
    torch.save(built(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match="--weights-key"):
        load_model(tmp_path / "m.pt", **keys)


def test_classes_of_the_training_script_beside_the_weights(arch, tmp_path):
    path = tmp_path / "c.ckpt"
    torch.save({"state_dict": built().state_dict(), "hyper_parameters": Settings()}, path)
    with pytest.raises(UnsafeFileError) as caught:
        load_model(path, arch=arch)
    message = str(caught.value)
    assert "Settings" in message
    remedy = f"torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'], 'weights.pt')"
    assert remedy in message
    exec(remedy.replace("'weights.pt'", repr(str(tmp_path / "w.pt"))))
    load_model(tmp_path / "w.pt", arch=arch, input_shapes="1x3x5x5")
    load_model(path, arch=arch, trust_pickle=True, input_shapes="1x3x5x5")


@pytest.mark.parametrize("trust_pickle", [False, True])
def test_a_whole_module_inside_a_checkpoint(trust_pickle, arch, tmp_path):
    net, path = built(), tmp_path / "c.pt"
    torch.save({"epoch": 1, "model": net, "optimizer": optimizer_state(net)}, path)
    said: list[str] = []
    for options in ({}, {"arch": arch}):
        model = load_model(
            path, input_shapes="1x3x5x5", trust_pickle=trust_pickle, notice=said.append, **options
        )
        with torch.no_grad():
            torch.testing.assert_close(model(X), net.eval()(X))
    assert any("'model'" in sentence for sentence in said)


def test_the_index_of_pickled_shards(arch, tmp_path):
    index = tmp_path / "pytorch_model.bin.index.json"
    shards = {"0.weight": "model-00001-of-00002.bin", "0.bias": "model-00002-of-00002.bin"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    with pytest.raises(ModelFileError, match="index of pickled shards"):
        load_model(index, arch=arch)
    torch.save({"0.weight": built()[0].weight.data}, tmp_path / "model-00001-of-00002.bin")
    with pytest.raises(ModelFileError, match="one shard of several"):
        load_model(tmp_path / "model-00001-of-00002.bin", arch=arch)


@pytest.mark.parametrize("packed", [list, tuple])
def test_weights_beside_other_things_in_a_list_are_found(tmp_path, arch, packed):
    net, lines = built(), []
    torch.save(packed([3, {"model": net.state_dict()}, optimizer_state(net)]), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", arch=arch, input_shapes="1x3x5x5", notice=lines.append)
    torch.testing.assert_close(model(X), built_like(net)(X))
    assert any("taken from '1.model'" in line for line in lines)


def built_like(net):
    again = built()
    again.load_state_dict(net.state_dict())
    return again


def test_of_several_in_a_list_one_is_named(tmp_path, arch):
    net, other = built(), built()
    torch.save([net.state_dict(), other.state_dict()], tmp_path / "m.pt")
    with pytest.raises(ModelFileError, match="several tables of weights") as caught:
        load_model(tmp_path / "m.pt", arch=arch, input_shapes="1x3x5x5")
    assert caught.value.remedy == "say which is meant: --weights-key 0"
    model = load_model(tmp_path / "m.pt", arch=arch, input_shapes="1x3x5x5", weights_key="1")
    torch.testing.assert_close(model(X), built_like(other)(X))


def test_what_holds_weights_in_another_form_is_not_said_to_hold_none(tmp_path, arch):
    state = built().state_dict()
    arrays = {"params": {name: each.numpy() for name, each in state.items()}}
    for saved, said in ((list(state.values()), "tensors without names"), (arrays, "arrays of numpy")):
        torch.save(saved, tmp_path / "m.pt")
        with pytest.raises(ModelFileError, match=said):
            load_model(tmp_path / "m.pt", arch=arch, input_shapes="1x3x5x5")
