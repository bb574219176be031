from __future__ import annotations

import numpy as np
import pytest

from nncompress.benchmarking.profile import of_calls, of_events, profile


def event(name, microseconds, op="Conv"):
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": op}}


def test_rows_are_medians_after_the_warm_up():
    events = [
        {"cat": "Session", "name": "model_run", "dur": 1000},
        {"cat": "Node", "name": "a_fence_before", "dur": 5, "args": {"op_name": "Conv"}},
        *(event("a", t) for t in (900, 10, 30, 20)),
        *(event("b", t, "Gemm") for t in (800, 4, 4, 6)),
    ]
    a, b = of_events(events, skipped=1)
    assert (a.op, a.node, a.calls, a.seconds) == ("Conv", "a", 1.0, pytest.approx(20e-6))
    assert (b.op, b.seconds) == ("Gemm", pytest.approx(4e-6))


def test_onnxruntime_names_its_nodes(linear_onnx, tmp_path, weight):
    (row,) = profile(linear_onnx(tmp_path / "m.onnx", weight), (np.zeros((4, 64), np.float32),))
    assert (row.op, row.node) == ("MatMul", "product")
    assert row.seconds > 0


def test_a_disturbed_run_does_not_count():
    usual = [("aten::conv2d", 1e-3), ("aten::relu", 1e-4), ("aten::relu", 2e-4)]
    disturbed = [("aten::conv2d", 1e-3), ("aten::relu", 1.0), ("aten::relu", 2e-4)]
    conv, relu, once = of_calls([*usual, *disturbed, *usual, ("once", 3e-3)], runs=3)
    assert (conv.op, conv.calls, conv.seconds) == ("conv2d", 1, pytest.approx(1e-3))
    assert (relu.op, relu.calls, relu.seconds) == ("relu", 2, pytest.approx(3e-4))
    assert (once.op, once.calls, once.seconds) == ("once", pytest.approx(1 / 3), pytest.approx(1e-3))


def test_torch_names_kinds_of_operators(model):
    rows = profile(model, (np.zeros((4, 64), np.float32),))
    assert any(row.op in ("linear", "addmm", "mm") and row.calls == 1 for row in rows)
    assert list(rows) == sorted(rows, key=lambda row: -row.seconds)


def test_other_runtimes_are_not_asked(tmp_path):
    assert profile(tmp_path / "m.pte", (np.zeros(1, np.float32),)) is None
