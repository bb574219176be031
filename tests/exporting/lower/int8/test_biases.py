"""Biases that OpenVINO reads: not the same for all units, and the same numbers but for one rounding."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from nncompress.exporting.lower.onnxruntime.int8.biases import lower_biases

LAYER = """
<ir_version: 8, opset_import: ["" : 21]>
layer (float[4, 2] x) => (float[4, 3] y)
<float one = {1.0}, int8[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {%s}>
{
    q = QuantizeLinear (x, one)
    data = DequantizeLinear (q, one)
    weight = DequantizeLinear (w, one)
    y = Gemm (data, weight, b)
}
"""
LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("value", [0.0, 1.5, -2.0, LARGEST, -LARGEST])
def test_equal_biases_are_told_apart_by_one_rounding(value):
    text = LAYER % ", ".join([f"{value:.9g}"] * 3)
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    assert lower_biases(model.graph) == 1
    (layer,) = (node for node in model.graph if node.op_type == "Gemm")
    bias = layer.inputs[2].const_value.numpy()
    assert np.isfinite(bias).all()
    assert np.unique(bias).size == 2
    np.testing.assert_allclose(bias, value, rtol=1e-6, atol=1e-20)
    assert lower_biases(model.graph) == 0
