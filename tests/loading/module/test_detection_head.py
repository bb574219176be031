"""A checkpoint of Ultralytics, by a small package of the same structure in its place: opened as its own code
runs it, and quantized but for its head."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import nncompress
from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.ir.layers.weights import layers

HEAD = """
import torch
from torch import nn

class Detect(nn.Module):
    def __init__(self):
        super().__init__()
        self.cv2, self.cv3 = nn.ModuleList([nn.Conv2d(8, 4, 1)]), nn.ModuleList([nn.Conv2d(8, 2, 1)])

    def forward(self, levels):
        boxes, scores = self.cv2[0](levels[0]).flatten(2), self.cv3[0](levels[0]).flatten(2)
        answer = torch.cat([8 * boxes.softmax(1), scores.sigmoid()], 1)
        return answer, {"boxes": boxes, "scores": scores, "feats": levels}

class Segment(Detect):
    pass

class Classify(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Conv2d(8, 2, 1)

    def forward(self, levels):
        return self.linear(levels[0]).mean((2, 3))
"""
TASKS = """
from torch import nn
from ultralytics.nn.modules import head

class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        body = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, 1, 1)]
        self.model = nn.Sequential(*body, getattr(head, kind)())

    def forward(self, image):
        for layer in self.model[:-1]:
            image = layer(image)
        return self.model[-1]([image])
"""


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Saves a network with a head of this kind as a training there does, and gives it, in float32."""
    (tmp_path / "ultralytics/nn/modules").mkdir(parents=True)
    for package in ("ultralytics", "ultralytics/nn", "ultralytics/nn/modules"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "ultralytics/nn/modules/head.py").write_text(HEAD)
    (tmp_path / "ultralytics/nn/tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def saved(kind: str) -> torch.nn.Module:
        from ultralytics.nn.tasks import Net

        torch.manual_seed(0)
        net = Net(kind).eval().half()
        torch.save({"epoch": -1, "model": None, "ema": net, "train_args": {"imgsz": 16}}, "best.pt")
        np.savez("images.npz", x=torch.rand(32, 3, 16, 16).numpy())
        return net.float()

    yield saved
    for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
        del sys.modules[name]


def in_float(model: nncompress.Model) -> set[str]:
    return {layer.name for layer in layers(model) if not layer.weight.quantized}


def test_it_is_opened_in_the_precision_it_runs_in_with_its_outputs_named(save):
    net, said = save("Detect"), []
    model = nncompress.load("best.pt", trust_pickle=True, data="images.npz", notice=said.append)
    assert "best.pt keeps its module in float16; it is opened in float32" in said
    assert [name.rpartition("_")[2] for name in model.outputs] == ["0", "boxes", "scores", "0"]
    x = torch.rand(3, 3, 16, 16)
    answer, parts = net(x)
    for got, wanted in zip(model.outputs_of(x), (answer, parts["boxes"], parts["scores"], parts["feats"][0])):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", ["Detect", "Segment"])
def test_its_head_stays_in_float_unless_it_is_included(save, capsys, kind):
    """Known from the checkpoint, and remembered in what a pass before wrote."""
    save(kind)
    opened = ["--trust-pickle", "--data", "images.npz"]
    assert run(["prune-nodes", "best.pt", *opened, "--ratio", "0.2", "-o", "pruned.pt2"]) == ExitCode.OK
    assert f"model.4 ({kind}) decodes boxes: quantize leaves its layers in float" in capsys.readouterr().err
    for source in (["best.pt", *opened], ["pruned.pt2", "--data", "images.npz"]):
        assert run(["quantize", *source, "-o", "q.pt2"]) == ExitCode.OK
        assert "left in float: of the detection head (--include-head" in capsys.readouterr().out
        assert in_float(nncompress.load("q.pt2")) == {"model.4.cv2.0", "model.4.cv3.0"}
    assert run(["quantize", "pruned.pt2", "--data", "images.npz", "--include-head", "-o", "all.pt2"]) == 0
    assert in_float(nncompress.load("all.pt2")) == set()


def test_a_classifier_of_the_same_package_has_no_such_head(save):
    save("Classify")
    said: list[str] = []
    model = nncompress.load("best.pt", trust_pickle=True, data="images.npz", notice=said.append)
    assert not any("decodes boxes" in each for each in said)
    assert in_float(nncompress.compress(model, "quantize", data="images.npz")) == set()


def test_without_trust_it_is_refused_by_the_names_of_its_classes(save, capsys):
    save("Detect")
    assert run(["inspect", "best.pt"]) == ExitCode.UNSAFE_FILE
    told = capsys.readouterr().err
    assert "ultralytics.nn.modules.head.Detect" in told
    assert "--trust-pickle" in told


def test_it_is_taught_by_its_original_and_judged_by_map(save, capsys):
    """The recipe's chain: no labels but the held-out boxes."""
    net = save("Detect")
    images = torch.from_numpy(np.load("images.npz")["x"])
    answer = net(images)[0].detach()
    best = answer[:, 4:].amax(1).argmax(1)
    boxes = answer[torch.arange(len(answer)), :4, best]  # the net's own best box is what there is to find
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    kinds = answer[torch.arange(len(answer)), 4:, best].argmax(1)[:, None]
    found = torch.cat([kinds, corners, torch.zeros(len(answer), 1)], 1)  # class, corners, no crowd
    np.savez("val.npz", x=images, y=found[:, None].numpy())
    teach = ["--teacher", "best.pt", "--teacher-weight", "1", "--trust-pickle", "--output-index", "0"]
    data = ["--data", "images.npz", "--val", "val.npz", "--metric", "map", "--epochs", "1", "-o", "t.pt2"]
    assert run(["train", "best.pt", *teach, *data]) == ExitCode.OK
    assert "mAP" in capsys.readouterr().out
    assert set(nncompress.load("t.pt2").history[-1]["validation"]) == {"map"}
