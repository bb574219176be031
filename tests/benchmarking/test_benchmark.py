from __future__ import annotations

import json

import numpy as np
import pytest

from nncompress.benchmarking import Candidate, benchmark
from nncompress.benchmarking.environment import environment
from nncompress.benchmarking.inputs import random_inputs
from nncompress.errors import DataError, ModelFileError, UsageError
from nncompress.ir import InputSpec


def test_everything_is_reported(tmp_path, linear_onnx, weight, model):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    wrong = linear_onnx(tmp_path / "wrong.onnx", -weight)
    steps = []

    class Listener:
        def step(self, description, done, total):
            steps.append((description, done, total))

    candidates = [
        Candidate("torch", model, parameters=640, macs=640),
        Candidate("onnx", path),
        Candidate("wrong", wrong),
    ]
    result = benchmark(candidates, batch=4, rounds=12, sessions=3, memory=False, progress=Listener())
    first, same, other = result.candidates
    assert (result.batch, result.threads, result.clock) == (4, 1, "cpu")
    assert result.rounds_per_session == (4, 4, 4)
    assert all(len(a.samples.wall_ns) == len(a.samples.cpu_ns) == 12 for a in result.candidates)
    assert first.speedup is None
    assert first.parity is None
    assert first.parameters == 640
    assert first.file_size is None
    assert same.file_size == path.stat().st_size
    assert same.speedup.low <= same.speedup.value <= same.speedup.high
    assert same.parity.outputs[0].agreement == 1
    assert same.parity.outputs[0].max_abs < 1e-4
    assert same.parity.samples == 16
    assert other.parity.outputs[0].cosine == pytest.approx(-1)
    assert {d for d, _, _ in steps} == {"opening", "benchmarking"}
    assert steps[-1][1:] == (100, 100)
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["kind"] == "bench"
    assert len(content["candidates"][1]["samples"]["wall_ns"]) == 12
    assert content["environment"]["cpu"]


def test_threads_choose_the_clock(tmp_path, linear_onnx, weight):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    result = benchmark([Candidate("a", path)], rounds=3, sessions=1, threads=2, memory=False)
    assert result.clock == "wall"
    assert result.candidates[0].cpu is None
    assert result.candidates[0].latency == result.candidates[0].wall


def test_a_time_budget_ends_the_run(tmp_path, linear_onnx, weight):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    result = benchmark([Candidate("a", path), Candidate("b", path)], time_budget=0.2, memory=False)
    assert 3 <= len(result.rounds_per_session) <= 8
    assert min(result.rounds_per_session) >= 5


def test_given_inputs_are_used(tmp_path, linear_onnx, weight):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    x = np.ones((3, 64), np.float32)
    result = benchmark(
        [Candidate("a", path), Candidate("b", path)], inputs=(x,), rounds=1, sessions=1, memory=False
    )
    assert result.batch == 3
    assert result.candidates[1].parity.samples == 3


def test_outputs_that_cannot_be_compared_are_a_warning(tmp_path, linear_onnx, weight):
    a, b = linear_onnx(tmp_path / "a.onnx", weight), linear_onnx(tmp_path / "b.onnx", weight[:, :5])
    result = benchmark([Candidate("a", a), Candidate("b", b)], rounds=1, sessions=1, memory=False)
    assert result.candidates[1].parity is None
    assert "b cannot be compared with a" in result.warnings[0]


def test_bad_requests_are_refused_by_name(tmp_path, linear_onnx, weight):
    path = linear_onnx(tmp_path / "m.onnx", weight)
    fixed = linear_onnx(tmp_path / "fixed.onnx", weight, batch=2)
    other = linear_onnx(tmp_path / "other.onnx", weight[:7])
    with pytest.raises(UsageError, match="nothing to benchmark"):
        benchmark([])
    for option in ("batch", "threads", "rounds", "sessions"):
        with pytest.raises(UsageError, match=f"{option} must be at least 1"):
            benchmark([Candidate("a", path)], **{option: 0})
    with pytest.raises(UsageError, match="above 0 seconds"):
        benchmark([Candidate("a", path)], time_budget=float("nan"))
    with pytest.raises(UsageError, match="fixed takes batches of 2 only"):
        benchmark([Candidate("a", path), Candidate("fixed", fixed)], rounds=1, memory=False)
    with pytest.raises(DataError, match="other: input x does not fit"):
        benchmark([Candidate("a", path), Candidate("other", other)], rounds=1, memory=False)
    with pytest.raises(ModelFileError):
        benchmark([Candidate("a", tmp_path / "none.onnx")])


def test_random_inputs_fit_their_specs():
    specs = [
        InputSpec("x", "float16", ("batch", 3, "h")),
        InputSpec("ids", "int64", ("batch", 5), low=2, high=7),
        InputSpec("mask", "bool", (4, 5)),
        InputSpec("kept", "bool", (4, 5), low=1, high=2),
    ]
    x, ids, mask, kept = random_inputs(specs, 4, seed=0)
    assert (x.shape, ids.shape, mask.shape) == ((4, 3, 16), (4, 5), (4, 5))
    assert ids.min() >= 2
    assert ids.max() < 7
    assert kept.all()
    assert not mask[:, 0].any()  # whichever of the two hides, no row is hidden whole
    assert mask[:, 1:].all()


def test_environment_is_json():
    content = json.loads(json.dumps(environment()))
    assert content["cores"] >= 1
    assert content["versions"]["torch"]
