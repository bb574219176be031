"""Sizes and names of dims in files that are read."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import nncompress
from nncompress.errors import ModelFileError, UnsupportedError
from nncompress.loading import load_model
from nncompress.loading.onnx.interpreter import RULES
from tests.loading.onnx.test_read import floats, graph_file, session_outputs

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_sizes_computed_in_floats_from_free_sizes_stay_free(tmp_path):
    """As Paddle resizes one map to the size of another: by sizes divided as floats."""
    nodes = [
        helper.make_node("MaxPool", ["x"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["x"], ["to"]),
        helper.make_node("Shape", ["small"], ["from"]),
        helper.make_node("Cast", ["to"], ["to_f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["from"], ["from_f"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["to_f", "from_f"], ["scales"]),
        helper.make_node("Resize", ["small", "", "scales"], ["y"], mode="linear"),
    ]
    dims = ("N", 2, "?", "?")
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", *dims)], [floats("y", *dims)])
    said = []
    model = load_model(path, notice=said.append)
    x = torch.randn(3, 2, 32, 48)
    assert not any("fixed" in sentence for sentence in said)
    torch.testing.assert_close(model.outputs_of(x)[0], torch.from_numpy(session_outputs(path, x)[0]))


def test_a_size_that_the_graph_fixes_is_not_called_free(tmp_path, monkeypatch):
    """A rule that writes down the size it was traced with agrees there, and nowhere else."""
    monkeypatch.setitem(RULES, "Relu", lambda call: torch.relu(call.tensor(0)).reshape(2, 3, -1)[:, :, :16])
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", 2, 3, "L")], [floats("y", 2, 3, "L")])
    said = []
    model = load_model(path, notice=said.append)
    assert model.inputs[0].shape == (2, 3, 16)
    assert any("fixed: L = 16" in sentence for sentence in said)


def test_dims_called_by_no_name_are_like_no_other(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", "?", "?", "?")], [floats("y", "?", "?", "?")])
    model = load_model(path)
    assert len(set(model.inputs[0].shape)) == 3
    assert model.outputs_of(torch.randn(3, 5, 7))[0].shape == (3, 5, 7)


def test_dims_whose_names_python_does_not_take_keep_them(tmp_path):
    weight = numpy_helper.from_array(
        np.random.default_rng().standard_normal((4, 3, 1)).astype(np.float32), "w"
    )
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    dims = ("p2o.Dynamic.0", 3, "length-1")
    path = graph_file(
        tmp_path / "m.onnx", nodes, [floats("x", *dims)], [floats("y", dims[0], 4, dims[2])], [weight]
    )
    model = nncompress.compress(load_model(path), ["prune:sparsity=0.5"])
    model.refresh()
    assert model.inputs[0].shape == ("batch", 3, "length-1")
    nncompress.export(model, tmp_path / "again.onnx")
    (given,) = onnxruntime.InferenceSession(tmp_path / "again.onnx").get_inputs()
    assert given.shape == ["batch", 3, "length-1"]


def test_a_resize_by_scales_may_say_what_counts_for_sizes_alone(tmp_path):
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
    nodes = [
        helper.make_node(
            "Resize",
            ["x", "", "s"],
            ["y"],
            mode="nearest",
            keep_aspect_ratio_policy="stretch",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    ]
    path = graph_file(
        tmp_path / "m.onnx", nodes, [floats("x", 1, 2, 3, 3)], [floats("y", 1, 2, 6, 6)], [scales], 18
    )
    assert load_model(path).outputs_of(torch.randn(1, 2, 3, 3))[0].shape == (1, 2, 6, 6)


def test_an_input_larger_than_any_memory_is_one_message(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", "N", 2**62)], [floats("y", "N", 2**62)])
    with pytest.raises(ModelFileError, match="larger than any memory"):
        load_model(path)


def test_what_runs_in_onnx_runtime_alone_is_refused_with_the_reason(tmp_path):
    """A padding by -2^62 and 2^62 in ONNX Runtime is none; torch refuses it."""
    pads = numpy_helper.from_array(np.array([0, -(2**62), 0, 2**62]), "pads")
    nodes = [helper.make_node("Pad", ["x", "pads"], ["y"])]
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", "N", 4)], [floats("y", "N", 4)], [pads])
    with pytest.raises(UnsupportedError, match="does not run in torch"):
        load_model(path)


def test_sizes_are_compared_only_where_the_graph_says_that_it_runs(tmp_path):
    """A window of 33 pixels bounds the size; others are free beyond it."""
    nodes = [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[33])]
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", "N", 2, "L")], [floats("y", "N", 2, "M")])
    said = []
    model = load_model(path, notice=said.append)
    assert model.inputs[0].shape == ("batch", 2, "L")
    assert model.dynamic["L"][0] == 33
    assert model.dynamic["L"][1] > 10**6  # samples of a sound
    assert any("from a bound on: L from 33" in sentence for sentence in said)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_length_that_a_recurrent_layer_runs_over_stays_free(tmp_path, kind):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    draw = np.random.default_rng(0).standard_normal
    weights = [
        numpy_helper.from_array(draw((2, gates * 5, size)).astype(np.float32), name)
        for name, size in (("W", 3), ("R", 5))
    ]
    settings = {"direction": "bidirectional", "hidden_size": 5}
    settings |= {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [helper.make_node(kind, ["x", "W", "R"], ["y"], **settings)]
    path = graph_file(
        tmp_path / "m.onnx", nodes, [floats("x", "T", "batch", 3)], [floats("y", "T", 2, "batch", 5)], weights
    )
    model = load_model(path)
    assert model.inputs[0].shape == ("T", "batch", 3)

    x = torch.randn(9, 4, 3)
    expected = torch.from_numpy(session_outputs(path, x)[0])
    for name in ("again.onnx", "again.pt2"):
        nncompress.export(model, tmp_path / name)
        torch.testing.assert_close(load_model(tmp_path / name).outputs_of(x)[0], expected, **CLOSE)
    again = tmp_path / "again.onnx"
    torch.testing.assert_close(torch.from_numpy(session_outputs(again, x)[0]), expected, **CLOSE)
    assert [node.op_type for node in onnx.load(again).graph.node].count(kind) == 1


def test_states_of_a_recurrent_layer_are_for_as_many_samples_as_its_input(tmp_path):
    """torch's op itself does not ask, and would read beyond them."""
    draw = np.random.default_rng(0).standard_normal
    weights = [
        numpy_helper.from_array(draw((1, 20, size)).astype(np.float32), name)
        for name, size in (("W", 3), ("R", 5))
    ]
    nodes = [helper.make_node("LSTM", ["x", "W", "R", "", "", "h", "c"], ["", "y"], hidden_size=5)]
    given = [floats("x", "T", "?", 3), floats("h", 1, "?", 5), floats("c", 1, "?", 5)]
    path = graph_file(tmp_path / "m.onnx", nodes, given, [floats("y", 1, "?", 5)], weights)
    model = load_model(path)
    assert len({spec.shape[1] for spec in model.inputs}) == 1, model.inputs


TRANSPOSED_SUM = [
    helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0]),
    helper.make_node("Add", ["x", "t"], ["y"]),
]


@pytest.mark.parametrize(
    ("nodes", "other", "expected"),
    [
        ([helper.make_node("Add", ["x", "h"], ["y"])], ("T", "M"), [("T", "batch"), ("T", "batch")]),
        (TRANSPOSED_SUM, ("?", "?"), [("T", "batch"), ("batch", "T")]),
    ],
)
def test_of_dims_that_the_graph_makes_equal_the_batch_gives_the_name_then_the_first(
    tmp_path, nodes, other, expected
):
    given = [floats("x", "T", "N"), floats("h", *other)]
    model = load_model(graph_file(tmp_path / "m.onnx", nodes, given, [floats("y", "T", "N")]))
    assert [spec.shape for spec in model.inputs] == expected
    assert model.dynamic.keys() == {"T", "batch"}


def test_dims_that_the_graph_makes_equal_are_compared_at_another_size(tmp_path, monkeypatch):
    monkeypatch.setitem(
        RULES, "Relu", lambda call: torch.relu(call.tensor(0)) * (call.tensor(0).shape[0] / 2)
    )
    nodes = [helper.make_node("Add", ["x", "h"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    given = [floats("x", "N", 5), floats("h", "M", 5)]
    said = []
    load_model(graph_file(tmp_path / "m.onnx", nodes, given, [floats("y", "N", 5)]), notice=said.append)
    assert any("fixed: N = 2, M = 2" in sentence for sentence in said), said


CENTERED = [
    helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
    helper.make_node("Sub", ["x", "m"], ["y"]),
]


@pytest.mark.parametrize("stated", [None, "9xBx3"])
def test_a_first_dim_that_is_no_batch_keeps_the_name_that_the_file_gives_it(tmp_path, stated):
    dims = ("time", "voices", 3)
    path = graph_file(tmp_path / "m.onnx", CENTERED, [floats("x", *dims)], [floats("y", *dims)], (), 17)
    model = load_model(path, input_shapes=stated)
    assert model.inputs[0].shape == ("time", "batch", 3)
    nncompress.export(model, tmp_path / "again.onnx")
    (given,) = onnxruntime.InferenceSession(tmp_path / "again.onnx").get_inputs()
    assert given.shape == ["time", "batch", 3]


def test_a_dim_marked_as_the_batch_by_a_single_sample_stays_free(tmp_path):
    dims = ("time", "voices", 3)
    path = graph_file(tmp_path / "m.onnx", CENTERED, [floats("x", *dims)], [floats("y", *dims)], (), 17)
    model = load_model(path, input_shapes="5xBx3")
    assert model.inputs[0].shape == ("time", "batch", 3)
    assert model.sizes == {"time": 5}


@pytest.mark.parametrize("op", ["Slice", "Split"])
def test_stored_numbers_cut_at_a_free_length_leave_it_free(tmp_path, op):
    """As a table of positions is cut to the length of its text: `position_ids[:, :length]`."""
    cut = {
        "Slice": [helper.make_node("Slice", ["positions", "zero", "length", "one"], ["own"])],
        "Split": [
            helper.make_node("Sub", ["whole", "length"], ["rest"]),
            helper.make_node("Concat", ["length", "rest"], ["parts"], axis=0),
            helper.make_node("Split", ["positions", "parts"], ["own", "others"], axis=1),
        ],
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["length"], start=1, end=2),
        *cut[op],
        helper.make_node("Gather", ["table", "own"], ["places"]),
        helper.make_node("Add", ["x", "places"], ["y"]),
    ]
    table = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    stored = {
        "positions": np.arange(12)[None],
        "zero": np.array([0]),
        "one": np.array([1]),
        "whole": np.array([12]),
        "table": table,
    }
    path = graph_file(
        tmp_path / "m.onnx",
        nodes,
        [floats("x", "N", "T", 3)],
        [floats("y", "N", "T", 3)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    model = load_model(path)
    assert "T" in model.dynamic
    for length in (2, 7, 11):
        x = torch.randn(2, length, 3)
        torch.testing.assert_close(model.outputs_of(x)[0], torch.from_numpy(session_outputs(path, x)[0]))
