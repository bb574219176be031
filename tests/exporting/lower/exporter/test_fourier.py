"""Fourier transforms of files that others than our exporter wrote: older opsets, and what may be left out."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nncompress.exporting.lower.openvino.fourier import spell_transforms

INT64 = np.int64


def _run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def _spelled(tmp_path, node, numbers, shape, opset):
    """What the file gives before, and after."""
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(made, tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    before = _run(tmp_path / "m.onnx", x)
    spell_transforms(tmp_path / "m.onnx")
    assert not {"DFT", "STFT"} & {each.op_type for each in onnx.load(tmp_path / "m.onnx").graph.node}
    return before, _run(tmp_path / "m.onnx", x)


@pytest.mark.parametrize(
    ("opset", "inputs", "attributes"),
    [
        (17, ["x"], {"axis": 2}),
        (17, ["x"], {}),
        (17, ["x", "n"], {"axis": -2, "inverse": 1}),
        (20, ["x"], {}),
        (20, ["x", "", "at"], {}),
    ],
)
def test_the_axis_is_read_as_the_opset_has_it(tmp_path, opset, inputs, attributes):
    numbers = {"n": np.array(5, INT64), "at": np.array(1, INT64)}
    node = helper.make_node("DFT", inputs, ["y"], **attributes)
    numbers = {name: value for name, value in numbers.items() if name in inputs}
    before, after = _spelled(tmp_path, node, numbers, [2, 6, 4, 2], opset)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", [["x", "step", "", "n"], ["x", "step", "w"], ["x", "step", "w", "n"]])
def test_frames_may_have_no_window_or_its_length(tmp_path, inputs):
    numbers = {"step": np.array(4, INT64), "n": np.array(8, INT64), "w": np.hanning(8).astype(np.float32)}
    node = helper.make_node("STFT", inputs, ["y"])
    numbers = {name: value for name, value in numbers.items() if name in inputs}
    before, after = _spelled(tmp_path, node, numbers, [2, 32, 1], 17)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
