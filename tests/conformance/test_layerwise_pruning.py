"""What `reduce` is compared with, as it is rebuilt in `benchmarks/`, runs and meets its budget."""

import numpy as np
import pytest
import torch

from benchmarks.networks.cifar_resnet import resnet20
from benchmarks.resnets.layerwise_pruning import grail, osscar
from nncompress.analysis.cost import cost
from nncompress.api import dataset
from nncompress.ir import Model


@pytest.mark.parametrize("method", [osscar, grail])
def test_channels_within_blocks_go_to_the_budget_and_the_readers_make_up_for_them(method, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(96, 3, 16, 16)
    net = resnet20()
    net.train()(images)  # so that norms know what they see
    model = Model.from_module(net.eval(), (images[:2],))
    np.savez(tmp_path / "images.npz", x=images.numpy())
    small = method(model, dataset(tmp_path / "images.npz", model), 0.75)
    assert 0.7 <= cost(small).macs / cost(model).macs <= 0.75
    with torch.no_grad():
        exact, found = model.outputs_of(images)[0], small.outputs_of(images)[0]
    assert (found - exact).norm() < 0.25 * exact.norm()
