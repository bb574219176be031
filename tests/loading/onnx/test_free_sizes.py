"""Files whose free sizes must fit the network, named as some exporters name dims and weights."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import nncompress
from nncompress.benchmarking.inputs import sizes_that_run
from nncompress.errors import DataError, UnsupportedError, VerificationError
from nncompress.loading.onnx.compare import compare
from nncompress.loading.onnx.sizes import Input
from nncompress.runtimes import open_artifact
from nncompress.runtimes.free_sizes import usual_sizes


def _conv(rng, name, c_in, c_out):
    return numpy_helper.from_array(rng.normal(size=(c_out, c_in, 3, 3)).astype(np.float32) / 4, name)


def _detector(path, h="p2o.Dim.1", w="p2o.Dim.2", shift=0.0):
    """x [n, 2, h, w] pooled by 32 and enlarged again, joined with itself: h and w in steps of 32."""
    rng = np.random.default_rng(0)
    weights = [_conv(rng, "conv.w_0", 2, 6), _conv(rng, "last.w_0", 12, 1)]
    ones = np.ones(6, np.float32)
    constants = {"g": ones, "z": 0 * ones, "m": 0 * ones, "v": ones}
    weights += [numpy_helper.from_array(value, key) for key, value in constants.items()]
    scales = np.array([1, 1, 32, 32], np.float32)
    weights += [
        numpy_helper.from_array(scales, "scales"),
        numpy_helper.from_array(np.float32(shift), "shift"),
    ]
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "conv.w_0"], ["a"], **pads),
        helper.make_node("BatchNormalization", ["a", "g", "z", "m", "v"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Resize", ["d", "", "scales"], ["e"], mode="nearest"),
        helper.make_node("Concat", ["c", "e"], ["f"], axis=1),
        helper.make_node("Conv", ["f", "last.w_0"], ["l"], **pads),
        helper.make_node("Add", ["l", "shift"], ["s"]),
        helper.make_node("Sigmoid", ["s"], ["y"]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, h, w])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, h, w])]
    graph = helper.make_graph(nodes, "g", given, made, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def test_sizes_at_which_a_file_runs_are_found_kept_and_used(tmp_path):
    said = []
    model = nncompress.load(_detector(tmp_path / "det.onnx"), notice=said.append)
    assert model.sizes == {"p2o.Dim.1": 224, "p2o.Dim.2": 224}
    assert any("figures are made with p2o.Dim.1 = 224, p2o.Dim.2 = 224" in each for each in said)
    model.sizes = {"p2o.Dim.1": 32, "p2o.Dim.2": 64}

    pruned = nncompress.compress(model, ["prune:std=0.2"])
    for suffix in ("pt2", "onnx"):
        nncompress.export(pruned, tmp_path / f"small.{suffix}")
        back = nncompress.load(tmp_path / f"small.{suffix}")
        assert back.sizes == ({} if suffix == "onnx" else model.sizes)  # there they are fixed
        assert back.dynamic["batch"][0] == 1
        x = back.example_inputs(1)[0]
        assert x.shape == (1, 2, 32, 64)
        assert torch.allclose(back(x), pruned(x), atol=1e-6)
    runner = open_artifact(tmp_path / "det.onnx")
    assert sizes_that_run(runner, {}) == {"p2o.Dim.1": 224, "p2o.Dim.2": 224}
    assert sizes_that_run(runner, {"p2o.Dim.1": 64}) == {"p2o.Dim.1": 64, "p2o.Dim.2": 224}
    assert sizes_that_run(runner, {"p2o.Dim.1": 33}) == {"p2o.Dim.1": 224, "p2o.Dim.2": 224}


def test_an_exported_program_is_run_at_sizes_that_it_takes(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(2, 4, 3, padding=1)

        def forward(self, x):  # [n, 2, t]: t in steps of 3, more than 40
            n, c, t = x.shape
            h = self.conv(x.reshape(n, c, t // 3, 3).sum(-1))
            return h[..., 14] + h.mean(-1)

    t = 3 * torch.export.Dim("t", min=2, max=1000)
    program = torch.export.export(Net(), (torch.randn(2, 2, 48),), dynamic_shapes=({2: t},))
    torch.export.save(program, tmp_path / "net.pt2")
    model = nncompress.load(tmp_path / "net.pt2")
    model(*model.example_inputs())
    assert all(size >= 45 for size in model.sizes.values())


def test_a_weight_that_names_its_layer_can_get_a_bias(tmp_path):
    model = nncompress.load(_detector(tmp_path / "det.onnx"), input="2x2x32x32")
    data = torch.randn(8, 2, 32, 32)
    quantized = nncompress.compress(model, ["quantize"], data=(data, torch.zeros(8, dtype=torch.long)))
    assert any(name.startswith("conv.w_0_bias") for name in quantized.state_dict())


def test_a_sigmoid_far_from_0_agrees_as_far_as_the_kernel_is_exact(tmp_path):
    path = _detector(tmp_path / "det.onnx", shift=-18.0)
    model = nncompress.load(path, input="2x2x32x32")
    x = model.example_inputs()[0]
    (theirs,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})
    apart = (model(x) - torch.from_numpy(theirs)).norm() / model(x).norm()
    assert apart > 1e-3  # of ONNX Runtime's kernel; should it become exact, so may the reader be
    nncompress.export(model, tmp_path / "again.onnx")


def test_a_network_that_amplifies_rounding_is_read_and_another_function_is_not(tmp_path, monkeypatch):
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["xx"]),
        helper.make_node("ReduceMean", ["xx"], ["a"], axes=[1]),
        helper.make_node("ReduceMean", ["x"], ["b"], axes=[1]),
        helper.make_node("Mul", ["b", "b"], ["bb"]),
        helper.make_node("Sub", ["a", "bb"], ["y"]),  # of values around 300, a variance of 1
    ]
    shifted = [helper.make_node("Add", ["given", "far"], ["x"]), *nodes]
    given = [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["n", 50])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])]
    far = [numpy_helper.from_array(np.float32(300), "far")]
    graph = helper.make_graph(shifted, "g", given, made, far)
    path = tmp_path / "variance.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    nncompress.load(path)

    from nncompress.loading.onnx.interpreter import RULES

    right = RULES["Sub"]
    monkeypatch.setitem(RULES, "Sub", lambda *given, **named: right(*given, **named) * 1.3)
    with pytest.raises(VerificationError, match="differs from ONNX Runtime"):
        nncompress.load(path)


def test_free_sizes_are_tried_from_the_remembered_and_likely_ones_on():
    image = list(usual_sizes([("n", 3, "h", "w")], "n", {}))
    assert image[0] == {"n": 2, "h": 224, "w": 224}
    assert len({tuple(each.items()) for each in image}) == len(image)
    assert next(usual_sizes([("n", "t"), (2, "n", 8)], "n", {"t": 33, "gone": 5})) == {"n": 2, "t": 33}
    absurd = next(usual_sizes([("n", 3, "h", "w")], "n", {"h": 2**20, "w": 2**20}))
    assert absurd == {"n": 2, "h": 224, "w": 224}


def test_a_dim_called_a_sum_is_that_sum_and_a_cache_no_image():
    shapes = [("batch", 1), ("batch", "past_length + 1"), ("batch", 4, "past_length", 8)]
    assert next(usual_sizes(shapes, "batch", {})) == {"batch": 2, "past_length": 16, "past_length + 1": 17}


def test_a_file_that_runs_at_no_size_whatever_is_not_blamed_on_its_sizes(tmp_path):
    """ONNX Runtime has no recurrent layers of doubles, and says so when they run."""
    draw = np.random.default_rng(0).standard_normal
    weights = [numpy_helper.from_array(draw((1, 20, size)), name) for name, size in (("w", 3), ("r", 5))]
    given = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["T", "batch", 3])
    made = helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["T", 1, "batch", 5])
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=5)]
    graph = helper.make_graph(nodes, "g", [given], [made], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match="does not support double"):
        nncompress.load(tmp_path / "m.onnx")


def test_a_dim_along_which_no_batch_runs_is_not_taken_for_that_of_the_samples(tmp_path):
    """More of them along `s` do not fit `past + s`, which proves nothing."""
    nodes = [
        helper.make_node("Concat", ["p", "x"], ["c"], axis=1),
        helper.make_node("ReduceSum", ["mask"], ["all"], keepdims=1),
        helper.make_node("Mul", ["c", "all"], ["scaled"]),
        helper.make_node("Unsqueeze", ["mask", "two"], ["column"]),
        helper.make_node("Mul", ["scaled", "column"], ["y"]),
    ]
    taken = {"x": ["b", "s", 8], "p": ["b", "past", 8], "mask": ["b", "past + s"]}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in taken.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([2]), "two")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    said = []
    found = nncompress.load(tmp_path / "m.onnx", notice=said.append)
    assert [spec.batch_dim for spec in found.inputs] == [0, 0, 0]
    assert any("change each other's outputs" in each for each in said)


def _doubled(path, *dims):
    shape = [*dims, 4]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return nncompress.load(path), [Input("x", torch.float32, tuple(shape))]


def test_a_first_dim_that_is_not_called_as_a_batch_is_moved_as_a_length_is(tmp_path):
    model, inputs = _doubled(tmp_path / "m.onnx", "tokens")

    def run(x):
        return [(2 * x * (x.shape[0] < 9)).numpy()]

    assert compare(model, run, "a runtime", inputs, {"tokens": 2}, tmp_path) is None


def test_every_free_dim_is_moved_where_a_file_takes_them_one_by_one(tmp_path):
    model, inputs = _doubled(tmp_path / "m.onnx", "batch", "time", "words")

    def run(x):
        if x.shape[1] != 16 and x.shape[2] != 16:
            raise DataError("does not run")
        return [(2 * x * (x.shape[2] == 16)).numpy()]

    assert compare(model, run, "a runtime", inputs, {"batch": 2, "time": 16, "words": 16}, tmp_path) is None
