"""Whole files: read, compressed, written back, equal to ONNX Runtime; or one line that says why not."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import nncompress
from nncompress.errors import ModelFileError, UnsafeFileError, UnsupportedError, UsageError
from nncompress.ir.graph.state import changed_tensors
from nncompress.loading import load_model


class Net(nn.Module):
    """Convolutions of every kind, a norm, a residual, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.deep, self.back = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        h = F.relu6(self.norm(self.stem(x)))
        h = h + F.silu(self.back(self.deep(h)))
        return self.head(F.max_pool2d(h, 2).mean((2, 3)))


class Text(nn.Module):
    """Token ids through a transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 7)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def forward(self, x):
        return self.head(self.layer(self.table(x)))


class Recurrent(nn.Module):
    """Both directions, then one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = (
            nn.LSTM(6, 9, bidirectional=True, batch_first=True),
            nn.GRU(18, 5, batch_first=True),
        )

    def forward(self, x):
        return self.gru(self.lstm(x)[0])[0][:, -1]


CASES = {
    "net": (Net, torch.randn(2, 3, 32, 32), {0: "N"}),
    "text": (Text, torch.randint(0, 50, (2, 10)), {0: "N", 1: "tokens"}),
    "recurrent": (Recurrent, torch.randn(2, 7, 6), {0: "N"}),
}


def exported(name, path):
    """The file as torch's exporter writes it."""
    build, x, dims = CASES[name]
    torch.manual_seed(0)
    module = build().eval()
    shapes = ({axis: torch.export.Dim(dim) for axis, dim in dims.items()},)
    torch.onnx.export(
        module, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False
    )
    return module, x


def session_outputs(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs)})


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_read_as_the_function_that_it_is(name, tmp_path):
    module, x = exported(name, tmp_path / "m.onnx")
    said: list[str] = []
    model = load_model(tmp_path / "m.onnx", notice=said.append)
    assert "agrees with ONNX Runtime" in said[-1]
    assert set(model.dynamic) == {"batch", *("tokens" for _ in range(name == "text"))}
    x = torch.cat([x, x.flip(0), x[:1]])
    torch.testing.assert_close(model(x), module(x), rtol=1e-4, atol=1e-5)


def test_a_read_file_is_pruned_and_written_back(tmp_path):
    exported("net", tmp_path / "m.onnx")
    model = nncompress.load(tmp_path / "m.onnx")
    small = nncompress.compress(model, ["prune-nodes:ratio=0.3"])
    nncompress.export(small, tmp_path / "small.onnx")
    before, after = (onnxruntime.InferenceSession(tmp_path / f) for f in ("m.onnx", "small.onnx"))
    assert [i.name for i in after.get_inputs()] == [i.name for i in before.get_inputs()]
    assert [o.name for o in after.get_outputs()] == [o.name for o in before.get_outputs()]
    assert sum(p.numel() for p in small.graph_module.parameters()) < 0.8 * sum(
        p.numel() for p in model.graph_module.parameters()
    )
    x = torch.randn(3, 3, 32, 32)
    (got,) = session_outputs(tmp_path / "small.onnx", x)
    np.testing.assert_allclose(got, small(x).detach().numpy(), rtol=1e-3, atol=1e-4)


def model_of(*nodes, inputs, outputs, stored=()):
    graph = helper.make_graph(
        list(nodes), "g", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in stored]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensor(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.mark.parametrize(
    ("given", "stored", "kept"),
    [
        ("in:0", "dense/kernel:0", "dense.kernel_0"),
        ("from", "class", "class"),
        ("torch", "lambda.in", "lambda.in"),
        ("self", "getattr", "getattr"),
    ],
)
def test_names_that_python_does_not_take_come_back_in_the_written_file(given, stored, kept, tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    model = model_of(
        helper.make_node("MatMul", [given, stored], ["out/logits"]),
        inputs=[tensor(given, ["N", 8])],
        outputs=[tensor("out/logits", ["N", 4])],
        stored=[(stored, weight)],
    )
    onnx.save(model, tmp_path / "m.onnx")
    read = load_model(tmp_path / "m.onnx")
    assert [name for name, _ in read.graph_module.named_parameters()] == [kept]
    nncompress.export(read, tmp_path / "again.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "again.onnx")
    assert [i.name for i in session.get_inputs()] == [given]
    assert [o.name for o in session.get_outputs()] == ["out/logits"]


def test_a_loop_and_a_branch_of_known_course_are_unrolled(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "one"], ["next"]), helper.make_node("Identity", ["go"], ["still"])],
        "body",
        [tensor("turn", [], TensorProto.INT64), tensor("go", [], TensorProto.BOOL), tensor("h", None)],
        [tensor("still", [], TensorProto.BOOL), tensor("next", None)],
    )
    model = model_of(
        helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body),
        inputs=[tensor("x", ["N", 4])],
        outputs=[tensor("y", ["N", 4])],
        stored=[("turns", np.array(3, np.int64)), ("one", np.ones(4, np.float32))],
    )
    onnx.save(model, tmp_path / "m.onnx")
    read = load_model(tmp_path / "m.onnx")
    x = torch.randn(5, 4)
    torch.testing.assert_close(read(x), x + 3)


def test_a_scan_of_known_length_is_unrolled(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "slice"], ["next"]), helper.make_node("Tanh", ["next"], ["kept"])],
        "body",
        [tensor("h", None), tensor("slice", None)],
        [tensor("next", None), tensor("kept", None)],
    )
    directions = {"scan_input_directions": [1], "scan_output_directions": [1]}
    axes = {"scan_input_axes": [1], "scan_output_axes": [1]}
    model = model_of(
        helper.make_node("ReduceMax", ["x"], ["h0"], axes=[1], keepdims=0),
        helper.make_node(
            "Scan", ["h0", "x"], ["last", "y"], body=body, num_scan_inputs=1, **axes, **directions
        ),
        inputs=[tensor("x", ["N", 3, 4])],
        outputs=[tensor("last", ["N", 4]), tensor("y", ["N", 3, 4])],
    )
    onnx.save(model, tmp_path / "m.onnx")
    x = torch.randn(5, 3, 4)
    for ours, its in zip(load_model(tmp_path / "m.onnx")(x), session_outputs(tmp_path / "m.onnx", x)):
        torch.testing.assert_close(ours, torch.from_numpy(its))


def test_ops_that_are_not_read_are_named_and_counted(tmp_path):
    unique = [helper.make_node("Unique", [name], [f"d{i}"]) for i, name in enumerate("xx")]
    add = helper.make_node("Add", ["d0", "d1"], ["y"])
    model = model_of(*unique, add, inputs=[tensor("x", ["N", 3, 3])], outputs=[tensor("y", ["N"])])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="not read") as caught:
        load_model(tmp_path / "m.onnx")
    assert "Unique (2)" in caught.value.got


def test_an_attribute_that_no_rule_reads_is_refused(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"], strange=1)
    model = model_of(node, inputs=[tensor("x", ["N", 3])], outputs=[tensor("y", ["N", 3])])
    from nncompress.loading.onnx.interpreter import OnnxModule

    with pytest.raises(UnsupportedError) as caught:
        OnnxModule(model)(torch.randn(2, 3))
    assert "strange" in caught.value.got


def test_files_that_are_none_and_data_outside_the_folder_are_refused(tmp_path):
    exported("net", tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError):
        load_model(tmp_path / "cut.onnx")
    outside = onnx.load(tmp_path / "m.onnx")
    for stored in outside.graph.initializer[:1]:
        onnx.external_data_helper.set_external_data(stored, "../secret", 0, 4)
        stored.ClearField("raw_data")
        stored.data_location = TensorProto.EXTERNAL
    (tmp_path / "outside.onnx").write_bytes(outside.SerializeToString())
    with pytest.raises(UnsafeFileError):
        load_model(tmp_path / "outside.onnx")
    with pytest.raises(UsageError, match="--input"):
        load_model(tmp_path / "m.onnx", input_shapes="1x4x32x32")
    with pytest.raises(UsageError, match="arch"):
        load_model(tmp_path / "m.onnx", arch="net.py:build")


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.register_buffer("seen", torch.tensor([[0.5, -1.0, 2.0]]))

    def forward(self, x):
        y = self.head(x) + self.seen
        self.seen.copy_(0.5 * self.seen + y[:1])
        return y


def test_our_own_files_come_back_with_history_metadata_and_state(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    model = nncompress.compress(nncompress.load(Stateful().eval(), input=x), ["prune:sparsity=0.5"])
    model.metadata["normalize"] = "imagenet"
    nncompress.export(model, tmp_path / "m.onnx")
    read = load_model(tmp_path / "m.onnx")
    assert [step["pass"] for step in read.history] == ["prune"]
    assert read.metadata["normalize"] == "imagenet"
    assert [spec.name for spec in read.inputs] == [spec.name for spec in model.inputs]
    assert read.outputs == model.outputs
    assert changed_tensors(read.graph) == ["seen"]
    torch.testing.assert_close(read.tensor("seen"), torch.tensor([[0.5, -1.0, 2.0]]))
    nncompress.export(read, tmp_path / "again.onnx")
    first, second = (onnxruntime.InferenceSession(tmp_path / name) for name in ("m.onnx", "again.onnx"))
    assert [o.name for o in second.get_outputs()] == [o.name for o in first.get_outputs()]
    for name in ("m.onnx", "again.onnx"):
        assert len(session_outputs(tmp_path / name, x)) == 2


def graph_file(path, nodes, inputs, outputs, stored=(), opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(stored))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def test_weights_in_constant_nodes_and_inside_branches_are_parameters(tmp_path):
    """The older of torch's exporters writes them so; both branches may call theirs "w"."""

    def branch(number):
        weight = numpy_helper.from_array(np.full((4, 4), number, np.float32))
        return helper.make_graph(
            [
                helper.make_node("Constant", [], ["w"], value=weight),
                helper.make_node("MatMul", ["h", "w"], [f"y{number}"]),
            ],
            f"b{number}",
            [],
            [floats(f"y{number}", "N", 4)],
        )

    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    condition = numpy_helper.from_array(np.array(False))
    nodes = [
        helper.make_node("Constant", [], ["weight"], value=weight),
        helper.make_node("MatMul", ["x", "weight"], ["h"]),
        helper.make_node("Constant", [], ["no"], value=condition),
        helper.make_node("Not", ["no"], ["yes"]),
        helper.make_node("If", ["no"], ["a"], then_branch=branch(1), else_branch=branch(2)),
        helper.make_node("If", ["yes"], ["b"], then_branch=branch(3), else_branch=branch(4)),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", "N", 3)], [floats("y", "N", 4)])
    model = load_model(path)
    assert {"weight"} < dict(model.graph_module.named_parameters()).keys()
    x = torch.randn(5, 3)
    torch.testing.assert_close(model.outputs_of(x)[0], torch.from_numpy(session_outputs(path, x)[0]))


def test_a_stored_mask_is_no_weight(tmp_path):
    rng = np.random.default_rng()
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    stored = [
        numpy_helper.from_array(rng.standard_normal((3, 8)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal((8, 4)).astype(np.float32), "v"),
    ]
    nodes = [
        helper.make_node("Constant", [], ["mask"], value=numpy_helper.from_array(mask)),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"]),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", "N", 4, 3)], [floats("y", "N", 4, 4)], stored)
    model = nncompress.compress(load_model(path), ["prune-nodes:ratio=0.5"])
    assert {tuple(p.shape) for p in model.graph_module.parameters()} == {(3, 4), (4, 4)}
    assert torch.isinf(dict(model.graph_module.named_buffers())["mask"]).sum() == 6


def test_weights_called_as_the_exporter_calls_values_are_written_again(tmp_path):
    names = [f"val_{i}" for i in range(12)]
    stored = [numpy_helper.from_array(np.full((6,), i, np.float32), name) for i, name in enumerate(names)]
    stored.append(numpy_helper.from_array(np.array([-1, 2, 3]), "shape"))
    values = ["x", *(f"sum{i}" for i in range(12))]
    nodes = [helper.make_node("Add", [a, w], [b]) for a, w, b in zip(values, names, values[1:])]
    nodes.append(helper.make_node("Reshape", [values[-1], "shape"], ["y"]))
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", "N", 6)], [floats("y", "N", 2, 3)], stored)
    model = load_model(path)
    for storage in ("plain", "packed"):
        nncompress.exporting.write(model, tmp_path / "again.onnx", storage=storage)
        x = np.random.default_rng().standard_normal((3, 6)).astype(np.float32)
        (got,) = onnxruntime.InferenceSession(tmp_path / "again.onnx").run(None, {"x": x})
        np.testing.assert_allclose(got, (x + sum(range(12))).reshape(3, 2, 3), rtol=1e-6)


def test_places_of_maxima_are_read_as_they_are_written(tmp_path):
    class Unpooled(nn.Module):
        """As SegNet does; the places come out, too."""

        def forward(self, x):
            h, places = F.max_pool2d(x, 2, return_indices=True)
            return h.exp(), F.max_pool1d(x[:, 0], 3, 2, 1, return_indices=True)[1], places

    x = torch.randn(2, 3, 6, 8)
    path = tmp_path / "m.onnx"
    nncompress.export(nncompress.load(Unpooled().eval(), input="Bx3x6x8"), path)
    for found, right in zip(load_model(path).outputs_of(x), Unpooled()(x), strict=True):
        torch.testing.assert_close(found, right)
    nodes = [helper.make_node("MaxPool", ["x"], ["y", "at"], kernel_shape=[2, 2], strides=[2, 2])]
    graph_file(
        path,
        nodes,
        [floats("x", "N", 3, 6, 8)],
        [floats("y", "N", 3, 3, 4), tensor("at", ["N", 3, 3, 4], TensorProto.INT64)],
    )
    for found, right in zip(load_model(path).outputs_of(x), session_outputs(path, x), strict=True):
        torch.testing.assert_close(found, torch.from_numpy(right))


def test_padding_by_nothing_may_say_how(tmp_path):
    pads = numpy_helper.from_array(np.zeros(4, np.int64), "p")
    nodes = [
        helper.make_node("Pad", ["x", "p"], ["z"], mode="reflect"),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, [floats("x", 2, 3)], [floats("y", 2, 3)], [pads])
    assert load_model(path).outputs_of(torch.ones(2, 3))[0].tolist() == [[1.0] * 3] * 2


def test_numbers_for_which_torch_has_no_kernel_are_shifted_or_refused_by_name(tmp_path):
    def of(op, **attributes):
        nodes = [
            helper.make_node("Cast", ["x"], ["u"], to=TensorProto.UINT32),
            helper.make_node(op, ["u", "by"], ["v"], **attributes),
            helper.make_node("Cast", ["v"], ["y"], to=TensorProto.FLOAT),
        ]
        ends = {"inputs": [tensor("x", ["N", 3])], "outputs": [tensor("y", ["N", 3])]}
        onnx.save(model_of(*nodes, **ends, stored=[("by", np.uint32([0, 3, 31]))]), tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    x = torch.tensor([[3.0, 70000.0, 3e9], [9.0, 2e9, 1.0]])
    for direction in ("LEFT", "RIGHT"):
        model = load_model(of("BitShift", direction=direction))
        assert torch.equal(model(x), torch.from_numpy(session_outputs(tmp_path / "m.onnx", x)[0]))
    with pytest.raises(UnsupportedError, match="does not run in torch") as caught:
        load_model(of("Max"))
    assert "UInt32" in caught.value.got
