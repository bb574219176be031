"""Passes that fit layers to data say so where there is less of it than a layer has inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import nncompress
from nncompress import api, pipeline
from nncompress.analysis.compensation.regression import Regression
from nncompress.ir import Model
from nncompress.passes import Context, PruneNodes
from nncompress.recipe import parse_pass

PASSES = [
    "prune-nodes:ratio=0.3",
    "factorize:rank=24",
    "cluster:codebook=8",
    "prune:pattern=2:4",
    "quantize:weight_bits=4,rounding=adaptive",
]


def warnings_of(text: str, records: int, tmp_path) -> list[str]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    x = torch.randn(records, 16) @ torch.randn(16, 64)
    model = Model.from_module(net.eval(), (x[:2],))
    np.savez(tmp_path / "x.npz", **{model.inputs[0].name: x.numpy()})
    data = api.dataset(str(tmp_path / "x.npz"), model)
    _, (step,) = pipeline.run(model, [parse_pass(text)], Context(data=data))
    return [w for w in step.warnings if "fewer rows" in w]


@pytest.mark.parametrize("text", PASSES)
def test_fewer_samples_than_inputs_are_a_warning_with_the_count_that_would_do(text, tmp_path):
    (warning,) = warnings_of(text, 20, tmp_path)
    assert "16 for" in warning  # 20 less those held out
    assert "samples to fit to, instead of 16" in warning


@pytest.mark.parametrize("samples", [1, 2, 3, 6, 12])
def test_a_repair_on_few_samples_does_no_harm(samples):
    """Of nodes in a net whose samples are alike in nothing: what is fitted to few is wrong about others."""
    torch.manual_seed(samples)
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 4))
    x = torch.randn(samples + 200, 64)
    model = Model.from_module(net.eval(), (x[:2],))
    data = nncompress.dataset(x[:samples].numpy(), model)
    errors = []
    for compensate in (False, True):
        chosen = PruneNodes(ratio=0.5, compensate=compensate)
        small, (step,) = pipeline.run(model, [chosen], Context(data=data))
        wanted, found = (each.outputs_of(x[samples:])[0].detach() for each in (model, small))
        errors.append(float((found - wanted).square().mean()))
    assert errors[1] <= 1.1 * errors[0]
    assert any("fewer rows" in warning for warning in step.warnings)


@pytest.mark.parametrize("text", PASSES)
def test_enough_samples_are_none(text, tmp_path):
    assert warnings_of(text, 256, tmp_path) == []


def test_only_layers_with_few_rows_are_fitted_once_more_to_judge_them(monkeypatch):
    """A head sees a row per sample, convolutions many: what judges the head does not fit these again."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    )
    x = torch.randn(16, 3, 12, 12)
    model = Model.from_module(net.eval(), (x[:2],))
    solved = []
    solve = Regression.solve

    def counted(self, start, **how):
        solved.append(self.count)
        return solve(self, start, **how)

    monkeypatch.setattr(Regression, "solve", counted)
    data = nncompress.dataset(x.numpy(), model)
    _, (step,) = pipeline.run(model, [PruneNodes(ratio=0.5)], Context(data=data))
    assert any("1 of 3 fitted layers saw fewer rows" in warning for warning in step.warnings)
    assert len(solved) == 3 + 1
