"""`export --precision float32`: how far that takes the outputs is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.exporting import write
from nncompress.ir import Model


class Offset(nn.Module):
    """(x + c) − c: in float32 what is below c · 1e-7 is gone."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x + self.offset - self.offset)


class Overflowing(nn.Module):
    def forward(self, x):
        return (x.abs() * 1e30 * 1e30).log()


@pytest.fixture
def wide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def written(module, name="wide.pt2"):
        write(Model.from_module(module.double().eval(), (torch.randn(2, 4, dtype=torch.float64),)), name)
        return module

    return written


TO_FLOAT32 = ["export", "wide.pt2", "--precision", "float32", "-o", "float32.pt2"]


def test_what_the_narrower_precision_costs_is_measured_on_the_data(wide, capsys):
    module = wide(Offset(1e9))
    x = np.random.default_rng(0).normal(size=(24, 4))
    np.savez("d.npz", x=x)
    assert run([*TO_FLOAT32, "--data", "d.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["converted"]
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        expected, got = module(inputs), module.float()(inputs.float())
    apart = float((got.double() - expected).norm() / expected.norm())
    assert apart > 0.25
    assert told["drift"][0]["relative"] == pytest.approx(apart, rel=1e-5)
    assert told["samples"] == {"count": 24, "origin": "data"}
    (warning,) = told["warnings"]
    assert "may no longer do what it did" in warning
    assert "leave --precision out" in warning


def test_what_costs_nothing_is_told_without_a_warning(wide, capsys):
    wide(Offset(0.5))
    assert run(TO_FLOAT32) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "outputs are 0.00% away from the original's (relative L2 norm), on 8 random inputs" in out
    assert "warning" not in out


def test_what_float32_makes_infinite_is_refused_with_a_remedy_that_works(wide, capsys):
    wide(Overflowing())
    assert run(TO_FLOAT32) == ExitCode.VERIFICATION
    err = capsys.readouterr().err
    assert "the model in float32" in err
    assert "leave --precision out, or give inputs that it is made for: --data" in " ".join(err.split())
    np.savez("d.npz", x=np.full((9, 4), 1e-30))
    assert run([*TO_FLOAT32, "--data", "d.npz"]) == 0
    np.savez("d.npz", x=np.ones((9, 4)))
    assert run([*TO_FLOAT32, "--data", "d.npz"]) == ExitCode.VERIFICATION
    assert "--data" not in capsys.readouterr().err.split("the model in float32")[1]
    assert run(["export", "wide.pt2", "-o", "again.pt2"]) == 0


def test_a_weight_beyond_float32_is_refused_with_a_remedy_for_it(wide, capsys):
    module = Offset(0.0)
    with torch.no_grad():
        module.double().head.weight[0, 0] = 1e300
    wide(module)
    assert run(TO_FLOAT32) == ExitCode.UNSUPPORTED
    assert "leave --precision out" in capsys.readouterr().err


def test_the_next_pass_goes_on_from_what_an_exported_file_holds(wide, capsys):
    """An `.onnx` in float32 is remembered with its float32 model, and the original in float64."""
    wide(Offset(0.5))
    assert run([*TO_FLOAT32[:-1], "float32.onnx"]) == 0
    assert run(["prune", "--sparsity", "0.5", "-o", "pruned.pt2"]) == 0
    assert torch.export.load("pruned.pt2").state_dict["head.weight"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_cpus_compute_in_float32_only_names_that_as_the_remedy(wide, capsys, dtype):
    def save(net, x):
        batch = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(net, (x,), dynamic_shapes=batch), "wide.pt2")

    net, x = nn.Sequential(nn.Conv3d(2, 3, 1), nn.AvgPool3d(2)).eval(), torch.randn(2, 2, 4, 4, 4)
    save(net.to(dtype), x.to(dtype))
    assert run(["inspect", "wide.pt2"]) == ExitCode.MODEL_FILE
    assert "save the model in float32" in " ".join(capsys.readouterr().err.split())
    save(net.float(), x)
    assert run(["inspect", "wide.pt2"]) == 0
