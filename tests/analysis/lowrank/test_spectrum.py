import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from nncompress.analysis.lowrank.spectrum import spectra
from nncompress.errors import ModelFileError
from nncompress.ir import Model


def test_values_are_those_of_scipy_and_ranks_follow():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    with torch.no_grad():
        module[3].weight.copy_(torch.randn(5, 2) @ torch.randn(2, 128))  # rank 2
    model = Model.from_module(module.eval(), (torch.randn(2, 3, 8, 8),))
    conv, linear = spectra(model)  # the depthwise one has no rank to lower
    expected = scipy.linalg.svdvals(module[0].weight.detach().double().reshape(8, 27).numpy())
    np.testing.assert_allclose(conv.values, expected, rtol=1e-5)
    assert linear.shape == (5, 128)
    assert linear.rank_for(0.999999) == 2
    energy = np.cumsum(expected**2) / np.sum(expected**2)
    assert conv.rank_for(0.9) == int(np.searchsorted(energy, 0.9)) + 1


def test_a_weight_with_nan_is_named():
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    with torch.no_grad():
        module[1].weight[2, 3] = float("nan")
    model = Model.from_module(module.eval(), (torch.randn(2, 4),))
    with pytest.raises(ModelFileError, match="the weight of 1 has NaN"):
        spectra(model)
