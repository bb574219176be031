"""Loops of an `.onnx` that would not end in anybody's time."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nncompress.errors import UnsupportedError
from nncompress.loading import load_model


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _loops(turns, depth):
    """Loops in loops, each of so many turns; without a number, none ends."""
    number = "turns" if turns else ""

    def body(level):
        given, made = f"h{level}", f"y{level}"
        node = helper.make_node("Mul", [given, "half"], [made])
        if level < depth:
            node = helper.make_node("Loop", [number, "yes", given], [made], body=body(level + 1))
        still = helper.make_node("Identity", [f"go{level}"], [f"still{level}"])
        counts = value(f"i{level}", [], TensorProto.INT64), value(f"go{level}", [], TensorProto.BOOL)
        results = [value(f"still{level}", [], TensorProto.BOOL), value(made, None)]
        return helper.make_graph([still, node], f"body{level}", [*counts, value(given, None)], results)

    stored = {"turns": np.array(turns, np.int64), "yes": np.array(True), "half": np.float32([0.5])}
    graph = helper.make_graph(
        [helper.make_node("Loop", [number, "yes", "x"], ["y"], body=body(1))],
        "graph",
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("turns", "depth", "says"),
    [
        (2**40, 1, "take too many turns"),
        (200, 3, "take too many turns"),
        (30, 3, "unrolled they are too many ops"),
    ],
)
def test_loops_of_very_many_turns_are_refused_before_they_run(tmp_path, turns, depth, says):
    """Loading 200 bytes never ended: ONNX Runtime was asked first what they compute."""
    onnx.save(_loops(turns, depth), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=says):
        load_model(tmp_path / "m.onnx")


def test_a_loop_that_never_ends_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("nncompress.loading.onnx.read.PATIENCE", 0.2)
    onnx.save(_loops(0, 1), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="does not end within"):
        load_model(tmp_path / "m.onnx")
