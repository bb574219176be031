"""Inputs that are one number from now on: `--input sr=16000`, through every door."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import nncompress
from nncompress.cli.app import run
from nncompress.errors import ExitCode, UnsupportedError, UsageError
from nncompress.ir.layers.weights import layers
from nncompress.ir.stated_constants import Constant


class ByRate(nn.Module):
    """Other layers for other rates; `other` lies behind the constant, as the state of a stream does."""

    def __init__(self):
        super().__init__()
        self.slow, self.fast = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x, sr: int, other):
        return (self.fast(x) if sr == 16000 else self.slow(x)) + other


class ByTensor(ByRate):
    def forward(self, x, sr: torch.Tensor, other):
        return torch.where(sr == 16000, self.fast(x), self.slow(x)) + other


def x_and_other(batch=3):
    return torch.randn(batch, 4), torch.randn(batch, 3)


def onnx_file(path, length="N"):
    """`If` on the rate, whose branches give other shapes."""
    random = np.random.default_rng(0)
    branches = {}
    for name, wide in (("then_branch", 3), ("else_branch", 5)):
        stored = [numpy_helper.from_array(random.standard_normal((4, wide)).astype(np.float32), f"w{wide}")]
        node = helper.make_node("MatMul", ["x", f"w{wide}"], [f"y{wide}"])
        result = helper.make_tensor_value_info(f"y{wide}", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [result], stored)
    graph = helper.make_graph(
        [
            helper.make_node("Equal", ["sr", "rate"], ["is_fast"]),
            helper.make_node("If", ["is_fast"], ["y"], **branches),
        ],
        "graph",
        [
            helper.make_tensor_value_info("sr", TensorProto.INT64, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [length, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(16000), "rate")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("tensor", [False, True])
def test_a_module_takes_a_number_or_a_tensor_as_its_forward_says(tensor):
    module, said, (x, other) = (ByTensor if tensor else ByRate)(), [], x_and_other()
    model = nncompress.load(module, input="x:Bx4,other:Bx3,sr=16000", notice=said.append)
    assert [spec.name for spec in model.inputs] == ["x", "other"]
    torch.testing.assert_close(model(x, other), module.fast(x) + other)
    assert any("sr=16000: constant from now on" in each for each in said)
    assert module(x, torch.tensor(8000), other).shape == (3, 3)  # the caller's own still takes it


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("rate", [16000, 8000])
def test_torchscript_is_scripted_with_it(here, tensor, rate):
    module, (x, other) = (ByTensor if tensor else ByRate)().eval(), x_and_other()
    torch.jit.script(module).save("m.pt")
    model = nncompress.load("m.pt", input=f"x:Bx4,other:Bx3,sr={rate}")
    expected = (module.fast if rate == 16000 else module.slow)(x) + other
    torch.testing.assert_close(model(x, other), expected)
    assert model.agreement is not None


def test_a_pt2_keeps_the_branch_that_is_taken(here):
    module, (x, other) = ByTensor().eval(), x_and_other()
    model = nncompress.load(pt2_file("m.pt2", module), input="sr=16000")
    torch.testing.assert_close(model(x, other), module.fast(x) + other)
    assert [name for name, _ in model.graph_module.named_parameters()] == ["fast.weight", "fast.bias"]
    again = nncompress.load(model.to_module(), input="sr=16000")  # it is that already
    assert [spec.name for spec in again.inputs] == ["x", "other"]
    with pytest.raises(UsageError, match="fixed to another value"):
        nncompress.load(model.to_module(), input="sr=8000")


def pt2_file(path, module=None):
    batch = torch.export.Dim("batch", min=1, max=64)
    x, other = x_and_other()
    shapes = ({0: batch}, None, {0: batch})
    program = torch.export.export(
        module or ByTensor().eval(), (x, torch.tensor(16000), other), dynamic_shapes=shapes
    )
    torch.export.save(program, path)
    return path


def test_the_next_commands_know_the_original_with_its_constants(here, capsys):
    pt2_file("m.pt2")
    assert run(["prune", "m.pt2", "--std", "0.5", "--input", "sr=16000"]) == ExitCode.OK
    assert run(["quantize", "--mode", "weights", "-o", "q.pt2"]) == ExitCode.OK
    assert run(["quantize", "m.prune.pt2", "--input", "sr=16000", "--mode", "weights"]) == ExitCode.OK
    x, other = x_and_other(8)
    np.savez("d.npz", x=x.numpy(), other=other.numpy())
    assert run(["eval", "--data", "d.npz", "--json"]) == ExitCode.OK
    assert '"original"' in capsys.readouterr().out


def test_a_teacher_has_the_constants_of_what_it_teaches(here, capsys):
    pt2_file("m.pt2")
    x, other = x_and_other(8)
    np.savez("d.npz", x=x.numpy(), other=other.numpy())
    train = ["train", "--data", "d.npz", "--teacher", "m.pt2", "--teacher-weight", "1", "--epochs", "1"]
    assert run([*train, "m.pt2", "--input", "sr=16000", "-o", "t.pt2"]) == ExitCode.OK
    assert run([*train, "t.pt2", "-o", "again.pt2"]) == ExitCode.OK  # which remembers them
    capsys.readouterr()
    plain = nncompress.load(nn.Bilinear(4, 3, 3), input="Bx4,Bx3")
    nncompress.export(plain, "plain.pt2")
    np.savez("d.npz", input1=x.numpy(), input2=other.numpy())
    assert run([*train, "plain.pt2", "-o", "other.pt2"]) == ExitCode.USAGE
    assert "got:      4, one number, 3 there, 4, 3 here" in capsys.readouterr().err


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, alpha: torch.Tensor):
        return nn.functional.linear(x, self.fc.weight * alpha, self.fc.bias)


def test_a_weight_times_a_constant_is_still_trained_and_pruned(here):
    module = Scaled().eval()
    torch.export.save(torch.export.export(module, (torch.randn(1, 4), torch.tensor(2.0))), "m.pt2")
    model = nncompress.load("m.pt2", input="alpha=2")
    assert [name for name, _ in model.graph_module.named_parameters()] == ["fc.weight", "fc.bias"]
    x = torch.randn(1, 4)
    torch.testing.assert_close(model(x), module(x, torch.tensor(2.0)))
    assert run(["prune", "m.pt2", "--input", "alpha=2", "--std", "0.5"]) == ExitCode.OK
    pruned = nncompress.load("m.prune.pt2")
    assert [layer.name for layer in layers(pruned)] == ["fc"]
    assert any(each.eq(0).any() for each in pruned.graph_module.parameters())


class ByKinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, k: int, z: float, flag: bool):
        return self.fc(x) * k / z if flag else self.fc(x)


@pytest.mark.parametrize("wrong", ["k=2.5", "k=true", "z=false", "flag=1", "k=2:int32"])
def test_torchscript_takes_values_of_the_type_that_it_says(wrong):
    script = torch.jit.script(ByKinds().eval())
    right = {"k": "k=2", "z": "z=3", "flag": "flag=true"}
    nncompress.load(script, input=",".join(["x:Bx4", *right.values()]))
    stated = {**right, wrong[: wrong.index("=")]: wrong}
    with pytest.raises(UsageError, match="the argument of TorchScript is of another type"):
        nncompress.load(script, input=",".join(["x:Bx4", *stated.values()]))


def test_an_argument_that_may_be_a_number_gets_one():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x, keep: int | torch.Tensor = 0):
            return self.fc(x)[:, slice(-keep, None) if isinstance(keep, int) else keep]

    assert nncompress.load(Last(), input="x:Bx4,keep=1").output_shapes() == [("batch", 1)]


@pytest.mark.parametrize("value", [44100, 44100.0])
def test_a_whole_number_is_held_as_it_is_said(value):
    with pytest.raises(UsageError, match="float16, which does not hold this value") as refused:
        Constant("sr", value).tensor("float16")
    assert "--input sr=44096, the nearest" in str(refused.value)
    assert Constant("sr", 44096).tensor("float16").item() == 44096
    assert Constant("speed", 0.1).tensor("float16").item() == pytest.approx(0.1, rel=1e-3)


def test_what_would_leave_nothing_to_give_is_refused(here):
    class Rest(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x, *rest, **named):
            return self.fc(x)

    torch.export.save(torch.export.export(nn.ReLU(), (torch.randn(3),)), "m.pt2")
    for model, stated in (("m.pt2", "input=1"), (nn.ReLU(), "input=1"), (Rest(), "x=1")):
        with pytest.raises(UsageError, match="would have no input left"):
            nncompress.load(model, input=stated)
    for stated in ("rest=1", "named=1", "other=1"):
        with pytest.raises(UsageError, match=f"{stated}: .* has no input of this name"):
            nncompress.load(Rest(), input=f"x:Bx4,{stated}")


def test_the_input_that_is_proposed_has_the_constants():
    with pytest.raises(UsageError) as refused:
        nncompress.load(ByKinds(), input="x:Bx5,k=2,z=3,flag=true")
    proposed = str(refused.value).partition("--input ")[2].partition(", or")[0]
    assert proposed == "1x4,k=2,z=3,flag=true"
    nncompress.load(ByKinds(), input=proposed)


def test_a_directory_of_transformers_takes_arguments_of_its_class(tmp_path):
    hf = pytest.importorskip("transformers")
    config = hf.ViTConfig(image_size=8, patch_size=4, hidden_size=8, intermediate_size=8, num_labels=2)
    config.num_hidden_layers, config.num_attention_heads = 1, 2
    hf.ViTForImageClassification(config).eval().save_pretrained(tmp_path)
    model = nncompress.load(tmp_path, input="pixel_values:Bx3x16x16,interpolate_pos_encoding=true")
    assert [spec.shape for spec in model.inputs] == [("batch", 3, 16, 16)]


def test_an_onnx_file_has_its_if_decided_and_goes_out_without_the_input(here, capsys):
    onnx_file(here / "m.onnx")
    np.savez("d.npz", x=np.random.randn(8, 4).astype(np.float32))
    assert (
        run(["quantize", "m.onnx", "--input", "sr=16000", "--data", "d.npz", "-o", "q.onnx"]) == ExitCode.OK
    )
    assert "sr=16000: constant from now on, and no input of the model any more" in capsys.readouterr().err
    written = onnx.load("q.onnx")
    assert [each.name for each in written.graph.input] == ["x"]
    assert [each.name for each in written.graph.output] == ["y"]
    assert not any(node.op_type == "If" for node in written.graph.node)


@pytest.mark.parametrize(("rate", "width"), [(16000, 3), (8000, 5)])
def test_an_if_is_decided_by_what_is_computed_of_constants_alone(rate, width, tmp_path):
    """Floats, too, through whatever ops: only what depends on the input leaves both branches open."""
    proto = onnx.load(onnx_file(tmp_path / "m.onnx"))
    proto.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    steps = [
        helper.make_node("ReduceMax", ["sr"], ["highest"], keepdims=0),
        helper.make_node("Cast", ["highest"], ["whole"], to=TensorProto.INT64),
    ]
    for node in reversed(steps):
        proto.graph.node.insert(0, node)
    proto.graph.node[2].input[0] = "whole"
    onnx.save(proto, tmp_path / "m.onnx")
    model = nncompress.load(tmp_path / "m.onnx", input=f"sr={rate}")
    assert model.output_shapes() == [("batch", width)]


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_files_are_run_with_it_beside_those_that_have_it_in_them(here, capsys, command):
    """A runtime is given the number in every call; a file that was made with it takes it no more."""
    onnx_file(here / "m.onnx")
    np.savez("d.npz", x=np.random.randn(8, 4).astype(np.float32))
    np.savez("labelled.npz", x=np.random.randn(8, 4).astype(np.float32), y=np.arange(8) % 3)
    model = nncompress.load("m.onnx", input="sr=16000")
    nncompress.export(model, "small.onnx")
    short = ["--time", "0.1s", "--profile"] if command == "bench" else []
    files = ["m.onnx", "small.onnx", "--data", "d.npz", "--json"]
    assert run([command, *files, "--input", "sr=16000", *short]) == ExitCode.OK
    printed = capsys.readouterr().out
    assert '"small.onnx"' in printed
    assert '"peak_memory": null' not in printed  # the file ran in a process of its own, too
    assert nncompress.evaluate("m.onnx", "labelled.npz", input="sr=16000").samples == 8
    assert run([command, *files, "--input", "sr=8000", *short]) == ExitCode.USAGE
    assert "fixed to another value" in capsys.readouterr().err


def test_of_several_models_each_is_given_what_it_takes(here, capsys):
    module = nn.Sequential(nn.Linear(4, 3))
    nncompress.export(nncompress.load(module, input="1x4"), "plain.onnx")
    short = {"seconds": 0.05, "runtime": "torch"}
    result = nncompress.bench({"m": module, "f": "plain.onnx"}, input=torch.randn(2, 4), **short)
    assert [each.name for each in result.candidates] == ["m", "f"]
    onnx_file(here / "m.onnx")
    with pytest.warns(UserWarning, match="sr=16000 is no input of plain.onnx, which is run without it"):
        nncompress.bench({"f": "plain.onnx", "m": "m.onnx"}, input="sr=16000", **short)
    np.savez("d.npz", x=np.random.randn(8, 4).astype(np.float32))
    command = ["eval", "plain.onnx", "m.onnx", "--data", "d.npz", "--input"]
    assert run([*command, "sr=16000"]) == ExitCode.OK
    assert "sr=16000 is no input of plain.onnx" in capsys.readouterr().err
    assert run([*command, "rate=16000"]) == ExitCode.USAGE
    assert "rate=16000: plain.onnx has no input of this name" in capsys.readouterr().err
    with pytest.raises(UsageError, match="tensors are for modules"):
        nncompress.bench({"f": "plain.onnx"}, input=torch.randn(2, 4))


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ("rate=16000", "no input of this name"),
        ("sr=1.5", "does not hold this value"),
        ("sr=16000:int32", "another dtype"),
        ("sr=fast", "is no constant"),
        ("sr=1,sr=2", "said twice"),
        ("x=0", "whose sizes are known"),
        ("sr=99999999999999999999", "is no constant"),
    ],
)
def test_what_is_no_value_of_an_input_is_refused(tmp_path, stated, says):
    with pytest.raises(UsageError, match=says):
        nncompress.load(onnx_file(tmp_path / "m.onnx"), input=stated)


def test_an_if_that_an_input_decides_names_the_way(tmp_path):
    with pytest.raises(UnsupportedError) as refused:
        nncompress.load(onnx_file(tmp_path / "m.onnx"))
    assert "--input sr=NUMBER" in str(refused.value)
