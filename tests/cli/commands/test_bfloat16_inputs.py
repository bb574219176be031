"""Models that take bfloat16, which numpy has not: commands that key or time their data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import nncompress
from nncompress.cli.app import run


@pytest.mark.parametrize("command", ["bench --runtime torch --time 0.2", "sensitivity --method quantize"])
def test_data_of_a_bfloat16_model(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()
    nncompress.export(nncompress.load(net, input=torch.zeros(2, 6, dtype=torch.bfloat16)), "m.pt2")
    np.savez("d.npz", x=np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32), y=np.arange(16) % 3)
    name, *options = command.split()
    code = run([name, "m.pt2", "--data", "d.npz", *options])
    assert code in (0, 6), capsys.readouterr().err
    assert "Traceback" not in capsys.readouterr().err
