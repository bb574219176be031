"""Batch norms are re-estimated where that helps and left alone where it does not."""

from __future__ import annotations

import torch
from networks import inputs, model

from nncompress.analysis.compensation.batch_norms import reestimate
from nncompress.analysis.compensation.held_out import output_error


def batches(count: int = 8, size: int = 16) -> list[tuple[torch.Tensor, ...]]:
    return [inputs("residual", size, seed=50 + i) for i in range(count)]


def renewed(changed, original, batches):
    return reestimate(changed, batches[::2], output_error(original, changed.outputs_of, batches[1::2]))


def test_statistics_that_no_longer_fit_are_re_estimated():
    original, changed = model("residual"), model("residual")
    with torch.no_grad():
        changed.tensor("conv1.weight").mul_(3)  # its batch norm would undo this
    blend, before, after = renewed(changed, original, batches())
    assert blend >= 0.75
    assert after < 0.25 * before
    x = inputs("residual", 32, seed=99)
    fresh = (changed(*x) - original(*x)).square().sum() / original(*x).square().sum()
    assert fresh < 0.3 * before


def test_statistics_that_fit_stay_bit_for_bit():
    original, same = model("residual"), model("residual")
    wanted = {k: v.clone() for k, v in same.state_dict().items()}
    assert renewed(same, original, batches())[0] == 0.0
    assert all(torch.equal(v, wanted[k]) for k, v in same.state_dict().items())


def test_a_network_without_norms_stays():
    each = model("flatten")
    assert renewed(each, each, [inputs("flatten", 4)] * 8) == (0.0, 0.0, 0.0)
