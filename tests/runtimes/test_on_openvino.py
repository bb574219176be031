"""Files in OpenVINO: the same outputs as elsewhere, precisions as asked, one line where it cannot be."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.devices import abilities
from nncompress.errors import DataError, DeviceError, ModelFileError, NNCompressError
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.runtimes import open_artifact
from nncompress.runtimes.on_openvino import OpenVinoRunner, by_itself, precisions, summary


class Small(nn.Module):
    """A convolution and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        h = torch.relu(self.conv(x)).mean((2, 3))
        return self.linear(h), h


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = Model.from_module(Small().eval(), (torch.randn(2, 3, 8, 8),))
    path = tmp_path_factory.mktemp("openvino") / "m.onnx"
    write(model, path)
    return model, path


@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_the_graph_does(exported, batch):
    model, path = exported
    x = torch.randn(batch, 3, 8, 8)
    runner = open_artifact(path, runtime="openvino", precision="float32")
    assert runner.name.startswith("OpenVINO ")
    assert runner.inputs[0].shape == ("batch", 3, 8, 8)
    for got, expected in zip(runner.run(x), model.outputs_of(x), strict=True):
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_results_of_one_run_are_not_overwritten_by_the_next(exported):
    runner = open_artifact(exported[1], runtime="openvino", precision="float32")
    first = runner.run(torch.randn(1, 3, 8, 8))[0]
    kept = first.copy()
    runner.run(torch.randn(1, 3, 8, 8))
    np.testing.assert_array_equal(first, kept)


def test_layers_say_in_what_they_ran(exported):
    runner = OpenVinoRunner(exported[1], 1, "float32")
    layers = runner.layers(torch.randn(1, 3, 8, 8))
    assert {layer.precision for layer in layers if layer.kind == "Convolution"} == {"float32"}
    assert summary(layers) == "2 of 2 in float32"


def test_a_precision_that_the_cpu_lacks_is_refused(exported, monkeypatch):
    assert "float32" in precisions()
    monkeypatch.setattr("nncompress.runtimes.on_openvino.precisions", lambda: ("float32",))
    with pytest.raises(DeviceError, match="bfloat16") as caught:
        open_artifact(exported[1], runtime="openvino", precision="bfloat16")
    assert "leave --precision" in caught.value.remedy


def test_doctor_says_what_openvino_computes_floats_in_here():
    (row,) = (row for row in abilities() if row.runtime.startswith("OpenVINO"))
    assert ("bfloat16" in row.runs) == ("bfloat16" in precisions())
    assert ("floats in bfloat16 unless told otherwise" in row.note) == (by_itself() == "bfloat16")


def test_wrong_files_and_inputs_end_in_one_line(exported, tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "text.xml").write_text("<net")
    for name in ("text.onnx", "text.xml"):
        with pytest.raises(ModelFileError, match="OpenVINO") as caught:
            open_artifact(tmp_path / name, runtime="openvino")
        assert "\n" not in str(caught.value.got)
    runner = open_artifact(exported[1], runtime="openvino")
    with pytest.raises(DataError):
        runner.run(torch.randn(1, 3, 8))
    with pytest.raises(NNCompressError, match="no file"):
        open_artifact(tmp_path / "nothing.xml")
    with pytest.raises(NNCompressError, match="runtime"):
        open_artifact(exported[1], runtime="tensorflow")


def test_opening_openvino_counts_nothing_in_the_home_of_the_user(tmp_path):
    """Its package does, when it is imported, and tells its makers; CI is where it would not anyway."""
    script = (
        "import sys\nfrom nncompress.runtimes.on_openvino import core\ncore()\n"
        "assert 'openvino_telemetry.main' not in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
