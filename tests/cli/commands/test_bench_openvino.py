"""`bench` with OpenVINO beside ONNX Runtime."""

import json

import pytest
import torch
from torch import nn

from nncompress import extras, load
from nncompress.benchmarking.own_process import OwnProcess, in_own_process
from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.runtimes import on_openvino


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    model = Model.from_module(net.eval(), (torch.randn(2, 3, 8, 8),))
    write(model, "m.pt2")
    write(model, "m.onnx")
    return tmp_path


def bench(capsys, *arguments):
    assert run(["bench", *arguments, "--time", "0.1", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["runs"][0]["candidates"]


def test_each_model_is_measured_in_each_runtime_and_says_which(here, capsys, monkeypatch):
    asked = []

    def process(artifact, inputs, threads, **where):  # the last alone is started: seconds each
        asked.append(tuple(where.values()))
        return (
            in_own_process(artifact, inputs, threads, **where) if len(asked) == 4 else OwnProcess(1000, 0.5)
        )

    monkeypatch.setattr("nncompress.benchmarking.in_own_process", process)
    candidates = bench(
        capsys, "m.pt2", "m.onnx", "--runtime", "onnxruntime,openvino", "--precision", "float32"
    )
    assert [candidate["name"] for candidate in candidates] == [
        "m.pt2 onnxruntime",
        "m.pt2 openvino float32",
        "m.onnx onnxruntime",
        "m.onnx openvino float32",
    ]
    assert [candidate["runtime"].split()[0] for candidate in candidates] == ["ONNX", "OpenVINO"] * 2
    assert asked == [("onnxruntime", None), ("openvino", "float32")] * 2
    assert candidates[-1]["peak_memory"] > 1000
    assert all(
        each["max_abs"] < 1e-4 for candidate in candidates[1:] for each in candidate["parity"]["outputs"]
    )


def test_the_profile_says_in_what_each_layer_ran(here, capsys):
    (candidate,) = bench(capsys, "m.onnx", "--runtime", "openvino", "--precision", "float32", "--profile")
    assert {row["op"] for row in candidate["profile"]} >= {"Convolution float32", "FullyConnected float32"}


def test_what_cannot_be_is_one_line(here, capsys, monkeypatch):
    monkeypatch.setattr(on_openvino, "precisions", lambda: ("float32",))
    assert run(["bench", "m.onnx", "--runtime", "openvino", "--precision", "bfloat16"]) == ExitCode.NO_DEVICE
    assert "does not compute in bfloat16 on this CPU" in capsys.readouterr().err
    for options in (
        ["--device", "cuda"],
        ["--device", "mobile"],
        ["--mode", "graphs"],
        ["--precision", "int4"],
    ):
        assert run(["bench", "m.onnx", "--runtime", "openvino", *options]) == ExitCode.USAGE
    assert run(["bench", "m.onnx", "--runtime", "tensorflow"]) == ExitCode.USAGE
    write(load("m.pt2"), "m.ort")
    assert run(["bench", "m.ort", "--runtime", "openvino"]) == ExitCode.USAGE
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    capsys.readouterr()
    assert run(["bench", "m.onnx", "--runtime", "openvino"]) == ExitCode.MISSING_EXTRA
    assert "nncompress[openvino]" in capsys.readouterr().err
