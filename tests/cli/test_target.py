"""`--target`: which place a file is written for, said by every command."""

import json

import pytest
import torch
from torch import nn

from nncompress import extras
from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.exporting import write
from nncompress.ir import Model


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    write(Model.from_module(net.eval(), (torch.randn(2, 3, 8, 8),)), "m.pt2")
    return tmp_path


def test_export_says_what_it_wrote_for_and_bench_refuses_what_its_target_does_not_read(
    here, capsys, monkeypatch
):
    assert run(["export", "m.pt2", "-o", "any.onnx"]) == 0
    assert "for any runtime" in capsys.readouterr().out
    monkeypatch.setattr(extras, "installed", lambda extra: True)
    assert run(["bench", "any.onnx", "--target", "xnnpack"]) == ExitCode.USAGE
    assert "xnnpack does not run any" in " ".join(capsys.readouterr().err.split())
    assert run(["export", "m.pt2", "-o", "own.onnx", "--target", "ort-cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "ort-cpu"


def test_a_file_for_another_target_is_told_of_by_bench_and_eval(here, capsys):
    pytest.importorskip("openvino")
    assert run(["export", "m.pt2", "-o", "own.onnx", "--target", "ort-cpu"]) == 0
    assert run(["export", "m.pt2", "-o", "cuda.onnx", "--target", "ort-cuda"]) == 0
    assert run(["export", "m.pt2", "-o", "any.onnx"]) == 0
    capsys.readouterr()
    command = ["bench", "any.onnx", "own.onnx", "--target", "openvino", "--time", "0.1", "--json"]
    assert run(command) == 0
    warnings = json.loads(capsys.readouterr().out)["runs"][0]["warnings"]
    told = [warning for warning in warnings if "written for" in warning]
    assert len(told) == 1
    assert told[0].startswith("own.onnx: it was written for ort-cpu")
    assert "--target openvino" in told[0]
    assert run(["eval", "any.onnx", "cuda.onnx"]) == 0
    assert "cuda.onnx: it was written for ort-cuda" in " ".join(capsys.readouterr().err.split())


def test_bench_takes_targets_for_runtime_and_device(here, capsys):
    pytest.importorskip("openvino")
    assert run(["bench", "m.pt2", "--target", "ort-cpu,openvino", "--time", "0.1", "--json"]) == 0
    candidates = json.loads(capsys.readouterr().out)["runs"][0]["candidates"]
    assert [candidate["runtime"].split()[0] for candidate in candidates] == ["ONNX", "OpenVINO"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["export", "m.pt2", "--target", "tpu"], "there is no such target"),
        (["export", "m.pt2", "-o", "m.pt2x", "--target", "ort-cpu"], "cannot tell the format"),
        (["export", "m.pt2", "-o", "n.pt2", "--target", "ort-cpu"], "does not read such a file"),
        (["export", "m.pt2", "-o", "n.onnx", "--target", "xnnpack"], "does not read such a file"),
        (["bench", "m.pt2", "--target", "tpu"], "there is no such target"),
        (["bench", "m.pt2", "--target", "tensorrt"], "an .onnx for tensorrt runs in ONNX Runtime here"),
        (
            ["eval", "m.pt2", "m.pt2", "--target", "tensorrt"],
            "an .onnx for tensorrt runs in ONNX Runtime here",
        ),
        (["inspect", "m.pt2", "--target", "tensorrt"], "export --target tensorrt writes the result"),
        (["bench", "m.pt2", "--target", "ort-cpu,xnnpack"], "several targets"),
        (
            ["bench", "m.pt2", "--target", "openvino", "--runtime", "torch"],
            "--target says device and runtime",
        ),
    ],
)
def test_what_cannot_be_is_one_line(here, capsys, command, said):
    assert run(command) == ExitCode.USAGE
    assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in here.iterdir()) == ["m.pt2"]
