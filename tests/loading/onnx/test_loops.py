"""Loops of an `.onnx` that would not end in anybody's time, and branches that the input decides."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from nncompress.errors import UnsupportedError
from nncompress.loading import load_model
from tests.loading.onnx.test_read import floats, graph_file, session_outputs


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


def _by_rate(path, *otherwise):
    """As a voice detector chooses between two rates."""
    branches = {}
    for name, nodes in (("then_branch", ["Identity"]), ("else_branch", otherwise)):
        made = ["x", *(f"{name}_{at}" for at in range(len(nodes)))]
        inside = [helper.make_node(op, [a], [b]) for op, a, b in zip(nodes, made, made[1:])]
        branches[name] = helper.make_graph(inside, name, [], [floats(made[-1], "N", "M")])
    rate = helper.make_tensor_value_info("fast", TensorProto.BOOL, [])
    nodes = [
        helper.make_node("If", ["fast"], ["h"], name="by_rate", **branches),
        helper.make_node("If", ["fast"], ["k"], name="again", **branches),
        helper.make_node("Add", ["h", "k"], ["y"]),
    ]
    return graph_file(path, nodes, [floats("x", "N", 3), rate], [floats("y", "N", "M")])


def test_of_a_branch_that_an_input_decides_both_are_computed(tmp_path):
    path = _by_rate(tmp_path / "m.onnx", "Neg", "Exp")
    said = []
    model = load_model(path, notice=said.append)
    assert any("both branches of If are computed" in each and "by_rate, again" in each for each in said)
    for fast in (True, False):
        x, rate = torch.randn(5, 3), torch.tensor(fast)
        expected = torch.from_numpy(session_outputs(path, x, rate)[0])
        torch.testing.assert_close(model.outputs_of(x, rate)[0], expected)


def test_branches_of_other_shapes_are_refused_by_file_op_and_what_to_do(tmp_path):
    path = _by_rate(tmp_path / "m.onnx", "Transpose")
    with pytest.raises(UnsupportedError) as caught:
        load_model(path)
    told = str(caught.value)
    for part in (
        str(path),
        "If",
        "by_rate",
        "condition depends on the input, and its branches",
        "(one of 2 If)",
        "bench and eval run the file",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("op", "reads", "read"),
    [
        ("Div", ["hundred", "x"], False),
        ("Mod", ["hundred", "x"], False),
        ("Gather", ["table", "x"], False),
        ("Div", ["x", "hundred"], True),
        ("Gather", ["x", "first"], True),
    ],
)
def test_a_branch_that_fails_on_numbers_for_which_it_is_not_taken_is_refused(tmp_path, op, reads, read):
    """`if min(x) > 0: 100 / x`: both branches are computed, and x = 0 ended in torch's ZeroDivisionError."""
    path = _guarded(tmp_path / "m.onnx", op, reads)
    if not read:
        with pytest.raises(UnsupportedError, match=rf"(?s)node guard.*{op} in a branch \(risky\)"):
            load_model(path)
        return
    model = load_model(path)
    for x in (torch.tensor([[0, 250, 3, -70]]), torch.tensor([[1, 250, 300, 4]])):
        torch.testing.assert_close(model.outputs_of(x)[0], torch.from_numpy(session_outputs(path, x)[0]))


@pytest.mark.parametrize("op", ["Gather", "GatherElements", "GatherND", "ScatterND"])
def test_a_branch_that_reads_beyond_a_size_is_left_out_with_a_line(tmp_path, op):
    """ONNX Runtime runs the file, as long as nobody takes that branch."""
    reads = {"ScatterND": ["x", "place", "update"], "GatherND": ["x", "place"]}.get(op, ["x", "beyond"])
    path, said = _guarded(tmp_path / "m.onnx", op, reads), []
    model = load_model(path, notice=said.append)
    assert any("guard (its other branch fails whenever it is taken" in each for each in said)
    x = torch.tensor([[0, 250, 3, -70]])
    torch.testing.assert_close(model.outputs_of(x)[0], torch.from_numpy(session_outputs(path, x)[0]))


def test_an_inner_branch_that_fails_whichever_way_leaves_the_outer_one_that_does_not(tmp_path):
    """`y = (x[4] if min(x) > 7 else x[4]) if min(x) > 0 else x`, of four."""
    path, said = _guarded(tmp_path / "m.onnx", "Gather", ["x", "beyond"], nested=True), []
    model = load_model(path, notice=said.append)
    assert any("guard (its other branch fails whenever it is taken" in each for each in said)
    x = torch.tensor([[0, 250, 3, -70]])
    torch.testing.assert_close(model.outputs_of(x)[0], torch.from_numpy(session_outputs(path, x)[0]))


def _guarded(path, op, reads, nested=False):
    """`y = op(reads) if min(x) > 0 else x`."""
    stored = {"zero": 0, "hundred": 100, "table": range(50), "first": [0, 1, 2, 3]}
    stored |= {"beyond": [[0, 1, 2, 4]], "place": [[0, -5]], "update": [7]}
    axis = {"axis": 1} if reads[1] in ("first", "beyond") else {}
    kept = helper.make_node("Identity", ["x"], ["kept"])
    made = helper.make_node(op, reads, ["made"], name="risky", **axis)
    if nested:
        both = {
            f"{way}_branch": helper.make_graph(
                [helper.make_node(op, reads, [way], **axis)], way, [], [value(way, None, TensorProto.INT64)]
            )
            for way in ("then", "else")
        }
        made = helper.make_node("If", ["large"], ["made"], name="within", **both)
    branches = {
        "then_branch": helper.make_graph([made], "then", [], [value("made", None, TensorProto.INT64)]),
        "else_branch": helper.make_graph([kept], "else", [], [value("kept", None, TensorProto.INT64)]),
    }
    nodes = [
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Greater", ["least", "zero"], ["positive"]),
        helper.make_node("Greater", ["least", "hundred"], ["large"]),
        helper.make_node("If", ["positive"], ["y"], name="guard", **branches),
    ]
    arrays = [numpy_helper.from_array(np.array(each, np.int64), name) for name, each in stored.items()]
    ends = [value(name, ["N", 4], TensorProto.INT64) for name in ("x", "y")]
    return graph_file(path, nodes, ends[:1], ends[1:], arrays)
