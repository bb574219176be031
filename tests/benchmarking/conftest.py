"""The smallest artifacts that can be measured."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from nncompress.ir import Model


@pytest.fixture(scope="session")
def linear_onnx():
    """Writes y = x @ weight, weight [K, N], to a path."""

    def write(path, weight, batch="batch"):
        k, n = weight.shape
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, k])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, n])],
            [onnx.numpy_helper.from_array(weight.astype(np.float32), "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, path)
        return path

    return write


@pytest.fixture(scope="session")
def weight():
    return np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)


@pytest.fixture(scope="session")
def model(weight):
    layer = torch.nn.Linear(64, 10, bias=False).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T))
    return Model.from_module(layer, (torch.zeros(2, 64),))
