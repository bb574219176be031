"""Architectures of timm and torchvision by name, as MODEL and as --arch."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nncompress import extras
from nncompress.cli import main as command_line
from nncompress.errors import MissingExtraError
from nncompress.exporting import write
from nncompress.loading import collections, load_model, load_module


def main(arguments):
    """The exit code."""
    with pytest.raises(SystemExit) as ended:
        command_line(arguments)
    return ended.value.code


NAMED = "torchvision:two?num_classes=5"


@pytest.fixture
def torchvision(monkeypatch):
    """What is called of torchvision.models, so that the tests need no such package."""

    def two(*, weights=None, weights_backbone="downloads", num_classes=2):
        assert weights is None
        assert weights_backbone is None
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, num_classes))

    package = ModuleType("torchvision")
    package.models = SimpleNamespace(
        list_models=lambda: ["two"],
        get_model_builder=lambda name: two,
        get_model=lambda name, **settings: two(**settings),
    )
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setattr(collections, "need", lambda extra, what: None)
    return two


@pytest.fixture
def trained(torchvision, tmp_path, monkeypatch):
    """Weights for five classes in w.pt, of which the working directory has the only copy."""
    monkeypatch.chdir(tmp_path)
    net = torchvision(weights_backbone=None, num_classes=5)
    torch.save(net.state_dict(), "w.pt")
    write(load_module(net, input_shapes="1x3"), "whole.pt2")
    np.savez("d.npz", x=np.float32(np.random.default_rng(0).normal(size=(8, 3))), y=np.arange(8) % 5)
    return net


@pytest.mark.parametrize("said", [("w.pt", {"arch": NAMED}), (NAMED, {"weights": "w.pt"})])
def test_an_architecture_by_name_takes_weights_and_settings(trained, said):
    model, x = load_model(said[0], input_shapes="1x3", **said[1]), torch.randn(4, 3)
    torch.testing.assert_close(model(x), trained(x))


def test_without_weights_they_are_the_same_fresh_ones_each_time_which_is_said(torchvision):
    told, x = [], torch.randn(4, 3)
    torch.manual_seed(5)
    first = load_model(NAMED, input_shapes="1x3", notice=told.append)
    drawn = torch.rand(1)
    torch.testing.assert_close(load_model(NAMED, input_shapes="1x3")(x), first(x), rtol=0, atol=0)
    assert "fresh weights" in told[0]
    torch.manual_seed(5)
    assert torch.rand(1) == drawn  # the caller's generator is where it was


def test_a_model_named_so_goes_through_commands_like_a_file(trained, capsys):
    assert main(["prune", NAMED, "--weights", "w.pt", "--std", "0.5", "--data", "d.npz"]) == 0
    assert main(["eval", NAMED, "w.prune.pt2", "--weights", "w.pt", "--data", "d.npz"]) == 0
    assert NAMED in capsys.readouterr().out
    assert main(["prune", NAMED, "--std", "0.5", "--data", "d.npz"]) == 0
    assert main(["export", "two.prune.pt2"]) == 0
    teacher = ["--teacher", NAMED, "--weights", "w.pt", "--epochs", "1"]
    assert main(["train", "two.prune.pt2", *teacher, "--data", "d.npz"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((NAMED, "--arch", NAMED), "names the architecture"),
        (("w.pt", "--weights", "w.pt"), "leave --weights out"),
        (("net.py:build", "--weights", "w.pt"), "w.pt --arch net.py:build"),
        ((NAMED, "--weights", "gone.pt"), "gone.pt does not exist"),
        (("torchvision:two", "--weights", "w.pt"), "do not fit"),
        ((NAMED, "--weights", "whole.pt2"), "leave --weights out; as MODEL: whole.pt2"),
        (("whole.pt2", "--arch", NAMED), "leave --arch out"),
        ((NAMED, "--weights-key", "model"), "--weights FILE"),
        (("torchvision:twoo",), "close are: two"),
        (("torchvision:",), "such as torchvision:two"),
        (("torchvision:two?colour=red",), "as torchvision:two?num_classes=10"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(trained, capsys, arguments, said):
    assert main(["inspect", *arguments]) in (2, 3)
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_weights_that_no_model_needs_are_refused(trained, capsys, command):
    assert main([command, "a.onnx", "w.pt", "--weights", "w.pt"]) == 2
    assert "leave --weights out" in capsys.readouterr().err


def test_the_extra_is_named_where_the_package_is_missing(monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    with pytest.raises(MissingExtraError, match=r"nncompress\[timm\]"):
        load_model("timm:resnet18")


def test_images_of_timm_have_the_size_that_it_says(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.pretrained_cfg = {"input_size": (3, 20, 24)}
    model = load_module(net)
    assert [tuple(model.concrete_shape(spec, 1)) for spec in model.inputs] == [(1, 3, 20, 24)]
    net.pretrained_cfg = {"input_size": (1, 20, 24)}  # of in_chans that was stated otherwise
    assert load_module(net).concrete_shape(load_module(net).inputs[0], 1)[1] == 3
