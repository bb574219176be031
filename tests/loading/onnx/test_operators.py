"""Every op that is read computes what its definition says: the node tests of the ONNX standard."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from torch import nn

import nncompress
from nncompress.errors import UnsupportedError
from nncompress.loading.onnx.interpreter import RULES, OnnxModule, missing_ops
from nncompress.loading.onnx.stored import from_array

NO_KERNEL = (
    "not implemented for",
    "numpy.object_",
    "ml_dtypes",
    "non-zero size",
    "zero-size",
)  # of torch's, on CPUs
TIES = ("test_top_k_same_values",)  # which of equal values comes first is free

# Before a dequantize the zero point is int64 [1] here: a file that gives it out is refused, since it
# is compared. And torch multiplies by the reciprocal of the scale where the standard divides by it.
DYNAMIC = tuple(f"test_dynamicquantizelinear{which}" for which in ("", "_max_adjusted", "_min_adjusted"))


def arrays(values):
    return (
        [np.asarray(v) for v in values]
        if all(isinstance(v, np.ndarray | np.generic) for v in values)
        else None
    )


def outcome(case):
    """ "right", "refused", "missing" or what went wrong."""
    if case.model.functions or missing_ops(case.model.graph):
        return "missing"
    inputs, outputs = map(arrays, case.data_sets[0])
    if inputs is None or outputs is None:
        return "missing"
    refusal = ""
    for stored in (False, True):  # operands given at run time; or, but for the first, stored in the file
        model, given = type(case.model)(), inputs
        model.CopyFrom(case.model)
        if stored:
            free = 1 if inputs and inputs[0].dtype.kind == "f" else 0
            named = list(zip(model.graph.input, inputs))[free:]
            model.graph.initializer.extend(numpy_helper.from_array(a, v.name) for v, a in named)
            given = inputs[:free]
        try:
            with torch.no_grad():
                got = OnnxModule(model).eval()(*map(from_array, given))
        except UnsupportedError as error:
            refusal = error.got or error.what
            continue
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            return "refused" if any(sign in str(error) for sign in NO_KERNEL) else f"{case.name}: {error}"
        return compared(case.name, got, outputs)
    return "refused" if refusal else f"{case.name}: nothing"


def compared(name, got, outputs):
    for ours, theirs in zip(got, outputs):
        half = ours.dtype in (torch.bfloat16, torch.float16)
        tolerance = 2e-2 if half else 2e-4
        mine = ours.detach().double().numpy() if half else ours.detach().numpy()
        try:
            if theirs.dtype.kind in "fV" or half:
                np.testing.assert_allclose(mine, theirs.astype(mine.dtype), rtol=tolerance, atol=tolerance)
            else:
                np.testing.assert_array_equal(mine, theirs)
                assert mine.dtype == theirs.dtype
        except AssertionError as error:
            return f"{name}: {error}"
    return "right"


@pytest.mark.filterwarnings("ignore")
def test_operators_compute_what_the_standard_says():
    free = [c.name for c in collect_testcases(None) if c.name.startswith(TIES) or c.name in DYNAMIC]
    cases = [c for c in collect_testcases(None) if c.name not in free and "_bf16" not in c.name]
    outcomes = Counter(outcome(case) for case in cases)
    right, refused, missing = (outcomes.pop(key) for key in ("right", "refused", "missing"))
    assert not outcomes, "\n".join(outcomes)
    assert right > 1100
    assert right > 5 * refused
    assert len(RULES) > 150
    assert missing


@pytest.mark.parametrize(
    ("op", "stored", "attributes", "expected"),
    [
        ("Div", [[-3, 3, -4, 5], [2, -2, 2, 2]], {}, [-1, -1, -2, 2]),
        ("Mod", [[-4, 7, 5], [3, -3, 8]], {"fmod": 1}, [-1, 1, 5]),
        ("Mod", [[-4, 7, 5], [3, -3, 8]], {}, [2, -2, 5]),
    ],
)
def test_what_follows_from_constants_alone_is_computed_as_the_op_is(op, stored, attributes, expected):
    names = [f"w{place}" for place in range(len(stored))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attributes)],
        "constants",
        [],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
        [numpy_helper.from_array(np.array(each, np.int64), name) for each, name in zip(stored, names)],
    )
    (got,) = OnnxModule(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).eval()()
    assert got.tolist() == expected


def test_a_power_of_two_numbers_that_are_stored_multiplies_the_input():
    """As torch writes the scale of attention; numpy gives no array of it."""
    nodes = [helper.make_node("Pow", ["w", "half"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    stored = [numpy_helper.from_array(np.float32(v), name) for name, v in (("w", 4), ("half", -0.5))]
    graph = helper.make_graph(nodes, "scale", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert OnnxModule(model).eval()(torch.tensor([2.0, 6]))[0].tolist() == [1, 3]


def test_a_range_whose_ends_are_turned_round_is_its_upper_end():
    node = helper.make_node("Clip", ["x", "low", "high"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    bounds = [numpy_helper.from_array(np.float32(v), name) for name, v in (("low", 2), ("high", 1))]
    graph = helper.make_graph([node], "clip", ends[:1], ends[1:], bounds)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert OnnxModule(model).eval()(torch.tensor([-5.0, 0, 5]))[0].tolist() == [1, 1, 1]


def test_values_are_clipped_to_what_the_input_says(tmp_path):
    """As spectrograms are: to a range below their own peak."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=0),
        helper.make_node("Sub", ["peak", "range"], ["least"]),
        helper.make_node("Clip", ["x", "least"], ["y"]),
        helper.make_node("Clip", ["y", "", "least"], ["z"]),
    ]
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5]) for name in "xyz"]
    stored = [helper.make_tensor("range", TensorProto.FLOAT, [], [0.5])]
    graph = helper.make_graph(nodes, "clip", floats[:1], floats[1:], stored)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(file, tmp_path / "m.onnx")
    model, x = nncompress.load(tmp_path / "m.onnx", notice=str), torch.randn(7, 5)
    least = x.max() - 0.5
    for got, expected in zip(model(x), (x.maximum(least), torch.full_like(x, least)), strict=True):
        torch.testing.assert_close(got, expected)


def test_normalization_by_what_the_batch_has_is_read_with_its_gradient(tmp_path):
    net = nn.Sequential(nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6, track_running_stats=False)).eval()
    x = torch.randn(5, 4, 3)
    nncompress.export(nncompress.load(net, input="1x4x3", notice=str), tmp_path / "m.onnx")
    model = nncompress.load(tmp_path / "m.onnx", notice=str)
    torch.testing.assert_close(model(x), net(x))
    model(x).square().sum().backward()


def test_transforms_of_our_own_files_are_read(tmp_path):
    """Of the axis beside the last, and of frames."""
    of_frames = {"n_fft": 8, "hop_length": 4, "window": torch.hann_window(8), "return_complex": True}

    class Spectral(nn.Module):
        def forward(self, x):
            return torch.fft.rfft2(x).abs(), torch.stft(x.flatten(1), **of_frames).abs()

    x = torch.randn(3, 6, 10)
    nncompress.export(nncompress.load(Spectral(), input="1x6x10", notice=str), tmp_path / "m.onnx")
    read = nncompress.load(tmp_path / "m.onnx", notice=str)
    for got, expected in zip(read.outputs_of(x), Spectral()(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
