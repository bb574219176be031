"""Weights by groups in OpenVINO: as they are written, and as its kernels multiply them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nncompress
from nncompress.passes import Context, Quantize
from nncompress.runtimes.on_openvino import OpenVinoRunner


def test_a_file_is_compared_without_the_rounding_of_activations(tmp_path):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).eval()
    x = torch.randn(4, 256)
    model = nncompress.load(net, input=(x,))
    Quantize(weight_bits=4, group_size=32).apply(model, Context())
    model.refresh()
    nncompress.export(model, str(tmp_path / "small.xml"))
    wanted = model.outputs_of(x)[0].detach()

    def error(**how) -> float:
        found = torch.from_numpy(OpenVinoRunner(tmp_path / "small.xml", 1, "float32", **how).run(x)[0])
        return float((found - wanted).norm() / wanted.norm())

    assert error(integers=False) < 1e-5
    assert error() < 0.02
