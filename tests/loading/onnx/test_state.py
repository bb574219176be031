"""What one call of an `.onnx` of ours hands to the next is no constant."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from nncompress.errors import UnsupportedError, VerificationError
from nncompress.loading import load_model
from nncompress.loading.onnx.stored import Store
from tests.loading.onnx.test_read import floats


def _counting(path, *nodes):
    """A file that counts its calls in `n`."""
    stored = {"n": np.array([0]), "one": np.array([1]), "two": np.float32([2])}
    count = [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("n", "n_out")]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Add", ["n", "one"], ["n_out"])],
        "g",
        [floats("x", 1, 8), count[0]],
        [floats("y", 1, "M"), count[1]],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model.metadata_props.add(key="nncompress.state", value='{"n_out": "n"}')
    onnx.save(model, path)
    return path


def _branch(path):
    """The double from the second call on."""
    double = helper.make_graph([helper.make_node("Mul", ["x", "two"], ["t"])], "a", [], [floats("t", 1, 8)])
    same = helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "b", [], [floats("e", 1, 8)])
    return _counting(
        path,
        helper.make_node("Equal", ["n", "one"], ["second"]),
        helper.make_node("Squeeze", ["second"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=double, else_branch=same),
    )


def test_a_branch_that_the_state_decides_is_taken_call_by_call(tmp_path):
    x = torch.randn(1, 8)
    module = load_model(_branch(tmp_path / "m.onnx")).exported_program().module()
    for times in (1, 2, 1):
        torch.testing.assert_close(module(x)[0], times * x)


def test_numbers_that_the_state_decides_are_refused_where_an_op_needs_constants(tmp_path):
    slices = [
        helper.make_node("Add", ["n", "one"], ["from"]),
        helper.make_node("Add", ["from", "one"], ["to"]),
        helper.make_node("Slice", ["x", "from", "to", "one"], ["y"]),
    ]
    with pytest.raises(UnsupportedError, match=r"Slice.*\n.*or on what the last call left"):
        load_model(_counting(tmp_path / "m.onnx", *slices))


def test_calls_after_the_first_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "constant", lambda store, name: store.arrays.get(name))
    with pytest.raises(VerificationError, match="in call 2 on output 'y'"):
        load_model(_branch(tmp_path / "m.onnx"))
