from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from nncompress.bench import Arm, benchmark
from nncompress.bench.environment import environment
from nncompress.bench.inputs import random_inputs
from nncompress.bench.peak_memory import peak_memory
from nncompress.errors import DataError, ModelFileError, UsageError
from nncompress.ir import InputSpec, Model


def linear_onnx(path, weight, batch="batch"):
    """y = x @ weight, weight [K, N]."""
    k, n = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, n])],
        [onnx.numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def weight():
    return np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)


@pytest.fixture(scope="module")
def model(weight):
    layer = torch.nn.Linear(64, 10, bias=False).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T))
    return Model.from_module(layer, (torch.zeros(2, 64),))


def test_everything_is_reported(tmp_path, weight, model):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    wrong = linear_onnx(tmp_path / "wrong.onnx", -weight)
    steps = []

    class Listener:
        def step(self, description, done, total):
            steps.append((description, done, total))

    arms = [Arm("torch", model, parameters=640, macs=640), Arm("onnx", path), Arm("wrong", wrong)]
    result = benchmark(arms, batch=4, rounds=12, sessions=3, memory=False, progress=Listener())
    first, same, other = result.arms
    assert (result.batch, result.threads, result.clock) == (4, 1, "cpu")
    assert result.rounds_per_session == (4, 4, 4)
    assert all(len(a.samples.wall_ns) == len(a.samples.cpu_ns) == 12 for a in result.arms)
    assert first.speedup is None
    assert first.parity is None
    assert first.parameters == 640
    assert first.file_size is None
    assert same.file_size == path.stat().st_size
    assert same.speedup.low <= same.speedup.value <= same.speedup.high
    assert same.parity.outputs[0].agreement == 1
    assert same.parity.outputs[0].max_abs < 1e-4
    assert same.parity.records == 16
    assert other.parity.outputs[0].cosine == pytest.approx(-1)
    assert {d for d, _, _ in steps} == {"opening", "benchmarking"}
    assert steps[-1][1:] == (100, 100)
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["kind"] == "bench"
    assert len(content["arms"][1]["samples"]["wall_ns"]) == 12
    assert content["environment"]["cpu"]


def test_threads_choose_the_clock(tmp_path, weight):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    result = benchmark([Arm("a", path)], rounds=3, sessions=1, threads=2, memory=False)
    assert result.clock == "wall"
    assert result.arms[0].cpu is None
    assert result.arms[0].latency == result.arms[0].wall


def test_a_time_budget_ends_the_run(tmp_path, weight):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    result = benchmark([Arm("a", path), Arm("b", path)], time_budget=0.2, memory=False)
    assert 3 <= len(result.rounds_per_session) <= 8
    assert min(result.rounds_per_session) >= 5


def test_given_inputs_are_used(tmp_path, weight):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    x = np.ones((3, 64), np.float32)
    result = benchmark([Arm("a", path), Arm("b", path)], inputs=(x,), rounds=1, sessions=1, memory=False)
    assert result.batch == 3
    assert result.arms[1].parity.records == 3


def test_outputs_that_cannot_be_compared_are_a_warning(tmp_path, weight):
    a, b = linear_onnx(tmp_path / "a.onnx", weight), linear_onnx(tmp_path / "b.onnx", weight[:, :5])
    result = benchmark([Arm("a", a), Arm("b", b)], rounds=1, sessions=1, memory=False)
    assert result.arms[1].parity is None
    assert "b cannot be compared with a" in result.warnings[0]


def test_bad_requests(tmp_path, weight):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    fixed = linear_onnx(tmp_path / "fixed.onnx", weight, batch=2)
    other = linear_onnx(tmp_path / "other.onnx", weight[:7])
    with pytest.raises(UsageError, match="nothing to benchmark"):
        benchmark([])
    for option in ("batch", "threads", "rounds", "sessions"):
        with pytest.raises(UsageError, match=f"{option} must be at least 1"):
            benchmark([Arm("a", path)], **{option: 0})
    with pytest.raises(UsageError, match="above 0 seconds"):
        benchmark([Arm("a", path)], time_budget=float("nan"))
    with pytest.raises(UsageError, match="fixed takes batches of 2 only"):
        benchmark([Arm("a", path), Arm("fixed", fixed)], rounds=1, memory=False)
    with pytest.raises(DataError, match="other: input x does not fit"):
        benchmark([Arm("a", path), Arm("other", other)], rounds=1, memory=False)
    with pytest.raises(ModelFileError):
        benchmark([Arm("a", tmp_path / "none.onnx")])


def test_random_inputs_fit_their_specs():
    specs = [
        InputSpec("x", "float16", ("batch", 3, "h")),
        InputSpec("ids", "int64", ("n", 5), low=2, high=7),
        InputSpec("mask", "bool", (4, 5)),
    ]
    x, ids, mask = random_inputs(specs, 4, seed=0)
    assert (x.shape, ids.shape, mask.shape) == ((4, 3, 16), (4, 5), (4, 5))
    assert ids.min() >= 2
    assert ids.max() < 7
    assert mask.all()


def test_peak_memory_sees_the_weights(tmp_path):
    """In a process of its own: 64 MiB more of weights are at least that much more memory."""
    rng = np.random.default_rng(0)
    small = linear_onnx(tmp_path / "small.onnx", rng.standard_normal((64, 64)))
    large = linear_onnx(tmp_path / "large.onnx", rng.standard_normal((4096, 4096)))
    peaks = [peak_memory(p, (np.zeros((1, k), np.float32),)) for p, k in ((small, 64), (large, 4096))]
    assert peaks[1] - peaks[0] > 60 * 2**20
    assert peaks[0] < 60 * 2**20


def test_peak_memory_of_a_process_that_fails_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert peak_memory(tmp_path / "m.onnx", (np.zeros((1, 64), np.float32),)) is None


def test_peak_memory_of_a_loaded_model(model, tmp_path, monkeypatch):
    (tmp_path / "argparse.py").write_text("raise SystemExit('code of the current directory ran')")
    monkeypatch.chdir(tmp_path)
    peak = peak_memory(model, (np.zeros((1, 64), np.float32),))
    assert peak is not None
    assert peak < 100 * 2**20


def test_environment_is_json():
    content = json.loads(json.dumps(environment()))
    assert content["cores"] >= 1
    assert content["versions"]["torch"]
