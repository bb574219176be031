"""`bench` as a user types it; the measurement itself is tested in tests/benchmarking."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from scripted_machine import script

from nncompress.benchmarking import sessions
from nncompress.cli.app import run
from nncompress.errors import ExitCode

SHORT = ["--time", "200ms"]


def write(path, weights, batch="batch"):
    """A chain of matrix products [K, K] on x [batch, K]."""
    k = len(weights[0])
    values = ["x", *(f"v{i}" for i in range(len(weights)))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [values[i], f"w{i}"], [values[i + 1]]) for i in range(len(weights))],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, k])],
        [helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, [batch, k])],
        [onnx.numpy_helper.from_array(w.astype(np.float32), f"w{i}") for i, w in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """light.onnx, and heavy.onnx that takes 24 times as long by a clock of ours."""
    monkeypatch.chdir(tmp_path)
    script(monkeypatch)
    rng = np.random.default_rng(0)
    write("light.onnx", [rng.standard_normal((128, 128))])
    write("heavy.onnx", [rng.standard_normal((128, 128)) / 12 for _ in range(24)])
    return tmp_path


def test_several_batches_files_and_profiles(here, capsys):
    names = ["heavy.onnx", "light.onnx"]
    options = ["--batch", "1,4", "--profile", "-o", "r.json", "-o", "r.csv", *SHORT]
    assert run(["bench", *names, *options]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "batch 4" in shown
    assert "operators of heavy.onnx" in shown
    assert "not reported here" in shown or "energy per call" in shown
    assert "light.onnx" in shown
    content = json.loads(Path("r.json").read_text())
    assert [r["batch"] for r in content["runs"]] == [1, 4]
    heavy, light = content["runs"][0]["candidates"]
    assert light["speedup"]["value"] == pytest.approx(24, rel=0.02)
    assert (heavy["cold_start_s"], heavy["peak_memory"]) == (0.5, 1000)
    assert len(heavy["sha256"]) == 64
    assert {row["op"] for row in heavy["profile"]} == {"MatMul"}
    with Path("r.csv").open(newline="") as file:
        assert [row["batch"] for row in csv.DictReader(file)] == ["1", "1", "4", "4"]


def test_compare_fails_on_a_regression_and_passes_otherwise(here, capsys):
    Path("small.onnx").write_bytes(Path("light.onnx").read_bytes())
    command = ["bench", "heavy.onnx", "small.onnx", *SHORT]
    assert run([*command, "-o", "base.json"]) == ExitCode.OK
    assert run([*command, "--compare", "base.json", "--tolerance", "60%"]) == ExitCode.OK
    assert "ok" in capsys.readouterr().out
    Path("small.onnx").write_bytes(Path("heavy.onnx").read_bytes())
    assert run([*command, "--compare", "base.json", "--tolerance", "60%", "--json"]) == ExitCode.REGRESSION
    printed = capsys.readouterr()
    (change,) = json.loads(printed.out)["baseline"]["changes"]
    assert change["regressed"]
    assert change["slowdown"]["value"] == pytest.approx(24, rel=0.02)
    assert "small.onnx is slower than in base.json" in printed.err
    assert run([*command, "--compare", "base.json", "-o", "base.json"]) == ExitCode.OUTPUT
    assert run([*command, "--compare", "base.json", "--threads", "2"]) == ExitCode.USAGE
    assert run(["bench", "heavy.onnx", *SHORT, "--compare", "base.json"]) == ExitCode.USAGE
    assert run([*command, "--compare", "none.json"]) == ExitCode.DATA


def test_ctrl_c_shows_and_writes_what_was_measured(here, capsys, monkeypatch):
    measure = sessions._measure

    def interrupted(measurement, plan, session, progress):
        measure(measurement, plan, session, progress)
        if session == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sessions, "_measure", interrupted)
    command = ["bench", "heavy.onnx", "light.onnx", "--batch", "1,4", "-o", "r.json", *SHORT]
    assert run(command) == ExitCode.INTERRUPTED
    printed = capsys.readouterr()
    assert "light.onnx" in printed.out
    assert "interrupted after 3 of 8 sessions" in printed.out
    assert "interrupted" in printed.err
    (only,) = json.loads(Path("r.json").read_text())["runs"]
    assert only["interrupted"]
    assert len(only["rounds_per_session"]) == 3


def test_what_could_fail_after_the_measurement_fails_before_it(here, monkeypatch):
    def never(*_, **__):
        raise AssertionError("something was measured")

    monkeypatch.setattr("nncompress.benchmarking.measure_sessions", never)
    assert run(["bench", "heavy.onnx", "-o", "none/r.json"]) == ExitCode.OUTPUT
    assert run(["bench", "heavy.onnx", "-o", "r.txt"]) == ExitCode.USAGE
    for wrong in (["--batch", "0"], ["--time", "soon"], ["--target-error", "0"], ["--tolerance", "200%"]):
        assert run(["bench", "heavy.onnx", *wrong]) == ExitCode.USAGE


def test_batches_that_the_model_or_the_data_do_not_have(here, capsys):
    np.savez("few.npz", x=np.zeros((3, 128), np.float32))
    assert run(["bench", "light.onnx", "--data", "few.npz", "--batch", "8", *SHORT]) == ExitCode.DATA
    assert "fewer samples than one call takes" in capsys.readouterr().err
    write("fixed.onnx", [np.eye(128)], batch=2)
    assert run(["bench", "fixed.onnx", "--batch", "8", *SHORT]) == ExitCode.USAGE
    assert run(["bench", "fixed.onnx", "--data", "few.npz", "--batch", "8", *SHORT]) == ExitCode.USAGE
    assert run(["bench", "fixed.onnx", "--json", *SHORT]) == ExitCode.OK  # its own batch, where none is given
    content = capsys.readouterr().out
    assert json.loads(content)["runs"][0]["batch"] == 2


def test_models_of_one_name_are_told_apart(here, capsys):
    Path("other").mkdir()
    Path("other/light.onnx").write_bytes(Path("light.onnx").read_bytes())
    assert run(["bench", "light.onnx", "other/light.onnx", "light.onnx", "--json", *SHORT]) == ExitCode.OK
    candidates = json.loads(capsys.readouterr().out)["runs"][0]["candidates"]
    assert [candidate["name"] for candidate in candidates] == [
        "light.onnx",
        "other/light.onnx",
        "light.onnx (2)",
    ]
