"""What a refusal says to do is right for what was refused, and works when it is typed."""

import re
import shlex

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import nncompress
from nncompress.data import open_data
from nncompress.errors import DataError, ModelFileError, UnsafeFileError, UnsupportedError, UsageError


@pytest.mark.parametrize("wrong", ["1x3x64x64", "1x7", "1x4,1x4"])
def test_an_input_that_runs_is_named_in_the_place_of_one_that_does_not(wrong):
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(UsageError) as refused:
        nncompress.load(net, input=wrong)
    stated = re.search(r"--input (\S+),", refused.value.remedy)[1]
    assert nncompress.load(net, input=stated).outputs


class Mode(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x, mode: str):
        return self.out(x)


class Count(Mode):
    def forward(self, x, mode: int):
        return self.out(x) * mode


@pytest.mark.parametrize(("kind", "number"), [(Mode, False), (Count, True)])
def test_a_number_is_asked_for_where_one_is_taken(tmp_path, kind, number):
    torch.jit.script(kind()).save(tmp_path / "m.pt")
    with pytest.raises(UnsupportedError) as refused:
        nncompress.load(tmp_path / "m.pt", input="1x4")
    assert ("--input mode=NUMBER" in refused.value.remedy) == number


def test_an_error_of_the_users_code_says_in_which_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def build():\n    raise RuntimeError('boom')\n\n\ndef score(output, batch):\n    return batch['y']\n"
    )
    net = nn.Linear(4, 3)
    torch.save(net.state_dict(), "w.pt")
    with pytest.raises(UsageError, match=r"boom \(own.py, line 2\)"):
        nncompress.load("w.pt", arch="own.py:build")
    data = (torch.randn(8, 4), torch.arange(8) % 3)
    with pytest.raises(DataError, match=r"\(own.py, line 6\)"):
        nncompress.evaluate(net, data, metric="own.py:score")


def test_tensors_that_are_none_are_saved_as_such_files_are(tmp_path):
    torch.save({"x": "text"}, tmp_path / "d.pt")
    with pytest.raises(DataError, match=r"torch\.save\("):
        open_data(str(tmp_path / "d.pt"))


def build():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


BUILD = f"{__file__}:build"


class Opaque:
    """What no weights-only unpickler takes."""


@pytest.mark.parametrize("name", ["b.pt2", ""])
def test_a_file_beside_is_named_as_it_is_typed(tmp_path, name):
    (tmp_path / "sub").mkdir()
    nncompress.export(nncompress.load(build(), input="1x4"), tmp_path / "sub" / "a.pt2")
    with pytest.raises(ModelFileError) as refused:
        nncompress.load(tmp_path / "sub" / name)
    assert nncompress.load(refused.value.remedy.rpartition(": ")[2]).outputs


@pytest.mark.parametrize("key", ["a", "the net", "n" * 100])
def test_the_key_of_a_table_is_quoted_and_whole(tmp_path, key):
    torch.save({key: build().state_dict(), "b": build().state_dict()}, tmp_path / "c.pt")
    with pytest.raises(ModelFileError) as refused:
        nncompress.load(tmp_path / "c.pt", arch=BUILD)
    option, stated = shlex.split(refused.value.remedy.partition(": ")[2])
    assert option == "--weights-key"
    assert nncompress.load(tmp_path / "c.pt", arch=BUILD, weights_key=stated).outputs


@pytest.mark.parametrize("fits", [True, False])
def test_a_part_of_the_weights_is_offered_where_it_would_fit(tmp_path, fits):
    part = {
        f"the net.{name if fits else index}": t
        for index, (name, t) in enumerate(build().state_dict().items())
    }
    torch.save(part | {"other.0.weight" if fits else "other.1": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(ModelFileError) as refused:
        nncompress.load(tmp_path / "w.pt", arch=BUILD)
    stated = re.search(r"--weights-key (.+) takes", refused.value.remedy)
    assert (stated is not None) == fits
    if stated:
        (key,) = shlex.split(stated[1])
        assert nncompress.load(tmp_path / "w.pt", arch=BUILD, weights_key=key).outputs


@pytest.mark.parametrize(("key", "module"), [("model", False), ("model", True), ("nets", False)])
def test_weights_beside_other_objects_are_saved_alone_by_the_line_that_is_told(tmp_path, key, module):
    (tmp_path / "sub").mkdir()
    net = build()
    torch.save({key: net if module else net.state_dict(), "run": Opaque()}, tmp_path / "sub" / "c.pt")
    with pytest.raises(UnsafeFileError) as refused:
        nncompress.load(tmp_path / "sub" / "c.pt")
    line = re.search(r"torch\.save\((.*), 'weights.pt'\)", refused.value.remedy)[1]
    assert ("KEY being" in refused.value.remedy) == (key == "nets")
    weights = eval(line, {"torch": torch, "KEY": "nets"})
    torch.save(weights.state_dict() if module else weights, tmp_path / "weights.pt")
    assert nncompress.load(tmp_path / "weights.pt", arch=BUILD).outputs


def test_an_input_that_was_refused_is_not_what_is_told_to_type(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 7) * 2

    with pytest.raises(UsageError) as refused:
        nncompress.load(Odd(), input="1x3x32x32")
    assert "1x3x32x32" not in refused.value.remedy
    assert "--input x:Bx" in refused.value.remedy


def onnx_file(path, nodes, inputs, initializers):
    graph = helper.make_graph(
        nodes,
        "graph",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, path)
    return path


def test_sizes_that_none_of_the_usual_fits_are_asked_for_by_their_names(tmp_path):
    path = onnx_file(
        tmp_path / "m.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["r"]), helper.make_node("Mul", ["r", "k"], ["y"])],
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "columns"]),
            helper.make_tensor_value_info("k", TensorProto.FLOAT, []),
        ],
        {"shape": np.array([-1, 37])},
    )
    with pytest.raises(UsageError) as refused:
        nncompress.load(path)
    stated = refused.value.remedy.partition("--input ")[2]
    assert "in the place of rows, columns" in refused.value.remedy
    typed = stated.replace("rows", "1").replace("columns", "37").replace("NUMBER", "2")
    assert nncompress.load(path, input=typed).outputs


def test_an_input_without_dims_is_replaced_by_one_that_has_some(tmp_path):
    unknown = helper.make_value_info("x", helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    path = onnx_file(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [unknown], {})
    with pytest.raises(UnsupportedError) as refused:
        nncompress.load(path)
    model = onnx.load(path)
    names = {"graph": model.graph, "onnx": onnx, "i": 0, "name": "x", "type": TensorProto.FLOAT}
    eval(refused.value.remedy.partition(": ")[2], names)
    onnx.save(model, path)
    assert nncompress.load(path).outputs


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_module_of_int8_weights_is_said_to_be_one(tmp_path):
    net = torch.ao.quantization.quantize_dynamic(build(), {nn.Linear}, dtype=torch.qint8)
    torch.jit.trace(net, torch.randn(1, 4)).save(tmp_path / "q.pt")
    with pytest.raises(UnsafeFileError, match="save the float model"):
        nncompress.load(tmp_path / "q.pt")


@pytest.mark.parametrize(
    "head", [b"\x18\0\0\0ORTM", b'<?xml version="1.0"?>\n<net name="m" version="11">', b"\0\0\0\0ET12"]
)
def test_what_another_runtime_reads_is_said_to_be_a_result_of_export(tmp_path, head):
    (tmp_path / "m").write_bytes(head + bytes(64))
    with pytest.raises(UnsupportedError, match="eval and bench take this file as it is"):
        nncompress.load(tmp_path / "m")
