"""The steps that a file rounds by, and gives back by, are the graph's, each in its place."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from records import Records
from torch import nn

from nncompress.exporting import write_onnx
from nncompress.exporting.check.compare import differs_without_rounding
from nncompress.exporting.check.onnxruntime import open_session, run
from nncompress.ir import Model
from nncompress.passes import Context, Quantize
from nncompress.runtimes.onnx_files.unrounded import write_unrounded
from nncompress.targets import TARGETS


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(64, 8)
    model = Model.from_module(net.eval(), (x[:2],))
    Quantize().apply(model, Context(data=Records((x,))))
    path = tmp_path_factory.mktemp("written") / "m.onnx"
    write_onnx(model, path)
    return model, path


def _opened(path):
    session = open_session(path, optimised=False)
    return lambda inputs: run(session, inputs)


def _pairs(graph):
    first = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    return first, [next(n for n in graph.node if node.output[0] in n.input) for node in first]


def _store(graph, node, at, change):
    """Another number in the place of an operand of one node."""
    was = next(each for each in graph.initializer if each.name == node.input[at])
    node.input[at] = f"{node.output[0]}_{at}"
    array = numpy_helper.to_array(was)
    graph.initializer.append(numpy_helper.from_array(change(array).astype(array.dtype), node.input[at]))


def _swap(a, b):
    kept = list(a.input[1:])
    a.input[1:], b.input[1:] = list(b.input[1:]), kept


def _changed(how, graph):
    rounds, gives = _pairs(graph)
    if how == "every scale":
        for node in gives:
            _store(graph, node, 1, lambda scale: scale * 1.03)
    elif how == "a scale":
        _store(graph, gives[1], 1, lambda scale: scale * 1.1)
    elif how == "a zero point":
        _store(graph, gives[1], 2, lambda zero: zero + 3)
    elif how == "pairs swapped":
        _swap(rounds[0], rounds[1])
        _swap(gives[0], gives[1])
    elif how == "no zero point":  # which is 0, as the second pair's is anyway
        for node in (rounds[1], gives[1]):
            del node.input[2:]
    elif how in ("FLOAT8E4M3FN", "INT4"):
        kind = TensorProto.DataType.Value(how)
        graph.initializer.append(helper.make_tensor("small", kind, [], [0]))
        for node in (rounds[1], gives[1]):
            node.input[2] = "small"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("nothing", ""),
        ("no zero point", ""),
        ("every scale", "back by another step than they were rounded by"),
        ("a scale", "back by another step than they were rounded by"),
        ("a zero point", "back by another step than they were rounded by"),
        ("pairs swapped", "other steps than the graph, or in another order"),
        ("FLOAT8E4M3FN", "rounds activations to FLOAT8E4M3FN"),
        ("INT4", "other steps than the graph"),
    ],
)
def test_a_step_that_is_not_the_graphs_is_told(how, says, written, tmp_path):
    model, path = written
    file = onnx.load(path)
    zero = next(each for each in file.graph.initializer if each.name == _pairs(file.graph)[0][1].input[2])
    assert numpy_helper.to_array(zero) == np.uint8(0)
    _changed(how, file.graph)
    onnx.save(file, tmp_path / "m.onnx")
    found = write_unrounded(model, tmp_path / "m.onnx", tmp_path / "floats.onnx")
    assert says in found
    assert bool(found) == bool(says)


class Padded(nn.Module):
    """A shortcut of fewer channels, and zeros laid around an image whose own zero is not the least code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2)

    def forward(self, x):
        x = self.first(x)
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.second(nn.functional.pad(x, (0, 1, 0, 1))) + shortcut


@pytest.mark.parametrize("target", ["", "ort-cpu"])
def test_codes_are_padded_with_what_stands_for_zero(target, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(32, 3, 8, 8)
    model = Model.from_module(Padded().eval(), (x[:2],))
    Quantize(every_layer=True).apply(model, Context(data=Records((x,))))
    model.refresh()
    path = tmp_path / "m.onnx"
    write_onnx(model, path, target=TARGETS[target] if target else None)
    assert differs_without_rounding(model, path, _opened) == ""
    file = onnx.load(path)
    pad = [node for node in file.graph.node if node.op_type == "Pad"][-1]
    _store(file.graph, pad, 2, lambda zero: zero + 9)
    onnx.save(file, path)
    assert "the file without rounding disagrees" in differs_without_rounding(model, path, _opened)
