import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from networks import built_once
from torch import nn
from torch.nn import functional as F

from nncompress.errors import OutputError, UnsupportedError, VerificationError
from nncompress.exporting import write_onnx
from nncompress.exporting.write import external_data
from nncompress.exporting.write import onnx as writer
from nncompress.ir import Model
from tests.exporting.networks import convolutional, language


def outputs(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {v.name: t.numpy() for v, t in zip(session.get_inputs(), inputs)})


def test_same_outputs_in_onnx_runtime(tmp_path, capfd):
    model = convolutional()
    report = write_onnx(model, tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
    for batch in (1, 5):
        x = torch.randn(batch, 3, 12, 12)
        expected = model(x).detach().numpy()
        np.testing.assert_allclose(outputs(tmp_path / "m.onnx", x)[0], expected, atol=1e-5)
    assert report.batches == (1, 3)
    assert report.max_abs_diff < 1e-5
    assert report.bytes == (tmp_path / "m.onnx").stat().st_size


def test_names_dims_history_tied_weights_and_no_source_paths(tmp_path):
    model = language()
    model.history.append({"pass": "prune", "std": 0.5})
    write_onnx(model, tmp_path / "m.onnx")
    file = onnx.load(tmp_path / "m.onnx")
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*file.graph.input, *file.graph.output]
    }
    assert shapes == {
        "ids": ["batch", 7],
        "mask": ["batch", 7],
        "logits": ["batch", 7, 60],
        "pooled": ["batch", 16],
    }
    properties = {p.key: p.value for p in file.metadata_props}
    assert json.loads(properties["nncompress.history"]) == [{"pass": "prune", "std": 0.5}]
    assert b"networks.py" not in (tmp_path / "m.onnx").read_bytes()
    tensors = file.graph.initializer  # a tied weight once
    assert sorted(np.prod(t.dims) for t in tensors if len(t.dims) == 2) == [16 * 16, 60 * 16]
    ids, mask = torch.randint(0, 60, (3, 7)), torch.rand(3, 7)
    logits, pooled = outputs(tmp_path / "m.onnx", ids, mask)
    np.testing.assert_allclose(logits, model(ids, mask)[0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(pooled, model(ids, mask)[1].detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(("given", "output"), [("x", "linear_1"), ("linear", "0.weight"), ("relu", "linear")])
def test_names_that_another_file_gave_are_not_those_of_the_exporter(tmp_path, given, output):
    model = Model.from_module(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.ones(2, 4),))
    model.metadata["input_names"] = {model.inputs[0].name: given}
    model.outputs = (output,)
    write_onnx(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [v.name for v in (*session.get_inputs(), *session.get_outputs())] == [given, output]


class Named(nn.Module):
    def forward(self, x):
        return {"x": x + 1, "a_b": x + 2, "a": {"b": x + 3}}


def test_an_output_called_as_an_input_or_another_output_gets_a_name_of_its_own(tmp_path):
    model = Model.from_module(Named(), (torch.ones(2, 4),))
    write_onnx(model, tmp_path / "m.onnx")
    x = torch.randn(2, 4)
    for found, added in zip(outputs(tmp_path / "m.onnx", x), (1, 2, 3), strict=True):
        np.testing.assert_allclose(found, x + added)


@pytest.mark.parametrize("make", [convolutional, language])
def test_half_precision_is_written_as_half(tmp_path, make):
    report = write_onnx(make(torch.float16), tmp_path / "m.onnx")
    assert 0 < report.relative_error < 3e-2
    whole = write_onnx(make(), tmp_path / "whole.onnx")
    assert report.bytes < 0.8 * whole.bytes


def test_bfloat16_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UnsupportedError, match="bfloat16"):
        write_onnx(language(torch.bfloat16), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class Divided(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, (2, 3), divisor_override=5), F.avg_pool2d(x, 3, 2, 1, divisor_override=2)


def test_the_divisor_of_a_pool_is_kept(tmp_path):
    model = Model.from_module(Divided(), (torch.randn(2, 3, 8, 9),))
    assert write_onnx(model, tmp_path / "m.onnx").relative_error < 1e-6


class Untranslatable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        return torch.linalg.qr(self.body(x))[0]


def test_an_op_onnx_lacks_is_named_with_its_place_and_nothing_else_is_said(tmp_path, capfd):
    model = Model.from_module(Untranslatable(), (torch.randn(2, 4, 4),))
    with pytest.raises(UnsupportedError, match=r"this op: qr behind body\.0\n"):
        write_onnx(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


class Complex(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x)


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, dtype=torch.float64)

    def forward(self, x):
        return self.stem(x)


@pytest.mark.parametrize(
    ("module", "example", "reason"),
    [
        (Complex(), torch.randn(2, 8), "ONNX has no complex numbers: output output"),
        (Double(), torch.randn(2, 3, 6, 6).double(), r"ONNX Runtime has no Conv .* \(layer stem\)"),
        (nn.ReLU(), torch.randn(2, 3).bfloat16(), "bfloat16, .*: input input"),
    ],
)
def test_numbers_that_the_runtime_lacks(tmp_path, module, example, reason):
    with pytest.raises(UnsupportedError, match=reason):
        write_onnx(Model.from_module(module, (example,)), tmp_path / "m.onnx")


def test_a_wrong_file_is_not_kept(tmp_path, monkeypatch):
    """The exporter is made to drop a bias: verification must notice."""
    target = tmp_path / "m.onnx"
    target.write_bytes(b"what was there")
    tidy = writer.tidy

    def spoil(onnx_model, model):
        tidy(onnx_model, model)
        bias = next(v for k, v in onnx_model.graph.initializers.items() if k.startswith("head.bias"))
        bias.const_value = onnx_ir.tensor(bias.const_value.numpy() + 0.5, name=bias.name)

    monkeypatch.setattr(writer, "tidy", spoil)
    with pytest.raises(VerificationError, match="disagrees with the graph on output"):
        write_onnx(convolutional(), target)
    assert target.read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_the_input_is_not_overwritten(tmp_path):
    source = tmp_path / "m.onnx"
    source.write_bytes(b"the original")
    with pytest.raises(OutputError, match="not overwritten"):
        write_onnx(convolutional(), tmp_path / "." / "m.onnx", protect=[source])
    assert source.read_bytes() == b"the original"


@pytest.fixture
def large(monkeypatch):
    """Every model's weights are beyond what one file can hold."""
    monkeypatch.setattr(writer, "PROTOBUF_LIMIT", 0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_computes(path, model):
    x = torch.randn(2, 3, 12, 12)
    np.testing.assert_allclose(outputs(path, x)[0], model(x).detach().numpy(), atol=1e-5)


@built_once
def scaled(factor):
    torch.manual_seed(0)
    module = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(factor)
    return Model.from_module(module, (torch.randn(2, 3, 12, 12),))


def test_large_weights_lie_beside_the_file_and_those_of_the_replaced_graph_go(tmp_path, large):
    old, new = scaled(1), scaled(0.5)
    write_onnx(old, tmp_path / "m.onnx")
    _, first = names(tmp_path)
    assert re.fullmatch(r"m\.onnx\.[0-9a-f]{16}\.data", first)
    report = write_onnx(new, tmp_path / "m.onnx")
    assert first not in names(tmp_path)
    assert len(names(tmp_path)) == 2
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert_computes(tmp_path / "m.onnx", new)
    write_onnx(new, tmp_path / "m.onnx")  # the same weights again
    assert_computes(tmp_path / "m.onnx", new)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_graph_whose_replacement_is_killed_has_its_weights(tmp_path, large, monkeypatch, step):
    old, new = scaled(1), scaled(0.5)
    write_onnx(old, tmp_path / "m.onnx")
    steps, replace = [], os.replace

    def until(call):
        def killed(*arguments):
            if call is not replace or Path(arguments[-1]).parent == tmp_path:
                steps.append(call)
            if len(steps) == step:
                raise KeyboardInterrupt
            return call(*arguments)

        return killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", until(replace))
        patched.setattr(external_data, "remove_replaced", until(external_data.remove_replaced))
        with pytest.raises(KeyboardInterrupt):
            write_onnx(new, tmp_path / "m.onnx")
    assert_computes(tmp_path / "m.onnx", new if step == 3 else old)
    assert len(names(tmp_path)) == (2 if step == 1 else 3)
    report = write_onnx(new, tmp_path / "m.onnx")
    assert_computes(tmp_path / "m.onnx", new)
    assert len(report.left) == (step == 3)  # what nothing proves to be of no use is named


def test_large_weights_that_another_file_uses_stay_and_are_named(tmp_path, large):
    old, new = scaled(1), scaled(0.5)
    for kept in ("copy.onnx", "m.onnx.bak"):
        write_onnx(old, tmp_path / "m.onnx")
        (data,) = tmp_path.glob("*.data")
        shutil.copy(tmp_path / "m.onnx", tmp_path / kept)
        assert write_onnx(new, tmp_path / "m.onnx").left == (str(data),)
        (tmp_path / kept).rename(tmp_path / "m.onnx")
        assert_computes(tmp_path / "m.onnx", old)
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_users_file_of_the_name_of_large_weights_is_not_overwritten(tmp_path, large):
    model = scaled(1)
    (tmp_path / "m.onnx.data").write_text("the user's")
    write_onnx(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").read_text() == "the user's"
    (weights,) = tmp_path.glob("m.onnx.*.data")
    weights.write_text("the user's")
    graph = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(OutputError, match="did not write it"):
        write_onnx(model, tmp_path / "m.onnx")
    assert weights.read_text() == "the user's"
    assert (tmp_path / "m.onnx").read_bytes() == graph


def test_a_write_to_a_diagonal_is_written(tmp_path):
    class Diagonal(nn.Module):
        def forward(self, x):
            h = x * 1
            h.diagonal(1, 1, 2).mul_(2)
            return h

    model = Model.from_module(Diagonal(), (torch.randn(2, 3, 4),))
    assert write_onnx(model, tmp_path / "m.onnx").relative_error == 0.0


def test_distances_of_rows_are_written(tmp_path):
    class Distances(nn.Module):
        def forward(self, x, y):
            return torch.cdist(x, y)

    model = Model.from_module(Distances(), (torch.randn(2, 5, 4), torch.randn(2, 3, 4)))
    assert write_onnx(model, tmp_path / "m.onnx").relative_error < 1e-5


class PerSample(nn.Module):
    """A convolution whose weights each sample has its own."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Linear(4, 36)

    def forward(self, x):  # (B, 4, 6, 6)
        weight = self.weights(x.mean((2, 3))).view(-1, 4, 3, 3)
        return F.conv2d(x.reshape(1, -1, 6, 6), weight, groups=x.shape[0]).view(-1, 1, 4, 4)


def test_a_group_per_sample_is_refused_in_words_of_the_network(tmp_path):
    model = Model.from_module(PerSample().eval(), (torch.randn(2, 4, 6, 6),))
    with pytest.raises(UnsupportedError, match="follows from the batch: conv2d behind weights"):
        write_onnx(model, tmp_path / "m.onnx")
