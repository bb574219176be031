from __future__ import annotations

import sys

import numpy as np

from nncompress.benchmarking.own_process import OwnProcess, in_own_process


def test_memory_sees_the_weights_and_a_cold_start_is_told(linear_onnx, tmp_path):
    """64 MiB more of weights are at least that much more memory.

    What this process holds meanwhile is not counted, though the kernel's `ru_maxrss` of a child would be.
    """
    ballast = np.ones(2**25)  # 256 MiB
    rng = np.random.default_rng(0)
    small = linear_onnx(tmp_path / "small.onnx", rng.standard_normal((64, 64)))
    large = linear_onnx(tmp_path / "large.onnx", rng.standard_normal((4096, 4096)))
    a, b = (in_own_process(p, (np.zeros((1, k), np.float32),)) for p, k in ((small, 64), (large, 4096)))
    assert b.peak_memory - a.peak_memory > 60 * 2**20
    assert a.peak_memory < 60 * 2**20
    assert min(a.cold_start_s, b.cold_start_s) > 0
    assert ballast.all()


def test_a_process_that_fails_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert in_own_process(tmp_path / "m.onnx", (np.zeros((1, 64), np.float32),)) == OwnProcess(None, None)


def test_a_loaded_model_and_no_code_of_the_current_directory(model, tmp_path, monkeypatch):
    (tmp_path / "argparse.py").write_text("raise SystemExit('code of the current directory ran')")
    monkeypatch.chdir(tmp_path)
    seen = in_own_process(model, (np.zeros((1, 64), np.float32),))
    assert seen.peak_memory is not None
    assert seen.peak_memory < 100 * 2**20
