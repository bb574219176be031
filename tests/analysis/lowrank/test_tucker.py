"""Tucker-2 of convolutions."""

import pytest
import torch

from nncompress.analysis.lowrank.tucker import TuckerDecomposition


@pytest.mark.parametrize("shape", [(10, 8, 3, 1), (12, 2, 1, 3), (9, 9, 1, 1), (2, 16, 3, 3)])
def test_every_pair_of_ranks_on_offer_can_be_had(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = TuckerDecomposition(weight)
    for (first, second), error in found.errors().items():
        project, core, left = found.factors((first, second))
        assert core.shape == (second, first, *shape[2:])
        made = torch.einsum("ob,ba...,ai->oi...", left, core, project)
        assert float((made - weight).square().sum()) <= error * (1 + 1e-9) + 1e-9


def test_at_the_largest_ranks_on_offer_nothing_is_lost():
    weight = torch.randn(10, 8, 3, 1, generator=torch.Generator().manual_seed(1))
    errors = TuckerDecomposition(weight).errors()
    assert min(errors.values()) == pytest.approx(0, abs=1e-9)
