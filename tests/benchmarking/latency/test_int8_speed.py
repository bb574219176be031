"""What export says of int8's speed follows from what was measured."""

import re

import pytest

import nncompress
from nncompress import exporting
from nncompress.benchmarking.latency.int8_speed import slower_in_int8
from nncompress.exporting.report import Int8Speed
from nncompress.passes import Quantize
from tests.passes.quantize.test_quantize_options import perceptron


def test_only_layers_on_integer_kernels_are_slower_in_int8():
    """One that was left in float was named, for the noise between two runs of one kernel."""
    profiles = {
        "float": [("a", "Conv", 10.0), ("b", "Conv", 10.0), ("c", "Gemm", 10.0), ("d", "LSTM", 5.0)],
        "int8": [("a", "QLinearConv", 20.0), ("b", "Conv", 11.0), ("c", "QGemm", 5.0), ("d", "LSTM", 6.0)],
    }
    assert slower_in_int8(profiles) == (("a", 0.5),)


def test_the_clock_of_a_target_is_advised_only_where_none_was_named():
    slow = Int8Speed(0.9, (("conv", 0.8),))
    assert "quantize --target ort-cpu" in slow.summary(advise=True)
    assert slow.summary(advise=False).endswith("slower in int8: conv (0.80x)")


def test_a_file_for_the_user_is_measured_and_one_to_decide_by_is_not(tmp_path):
    small = nncompress.compress(perceptron(64, 128, 10), [Quantize(mode="dynamic")])
    report = nncompress.export(small, tmp_path / "m.onnx", target="ort-cpu")
    assert report.int8_speedup > 0
    said = re.search(r"([\d.]+)x as fast as float32 here", report.int8)
    assert float(said[1]) == pytest.approx(report.int8_speedup, abs=0.006)
    unmeasured = exporting.write(small, tmp_path / "n.onnx", target="ort-cpu")
    assert unmeasured.int8_speedup is None
    assert "as fast as" not in unmeasured.int8
