"""Groups found in the smallest networks that show each rule; every removal is proven."""

from __future__ import annotations

import numpy as np
import pytest
from networks import NETWORKS, model

from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings, prove, remove_units


@pytest.mark.parametrize("name", NETWORKS)
def test_random_removal_is_proven(name):
    given = model(name)
    couplings = find_couplings(given)
    assert couplings.groups, "nothing to remove: the proof would be empty"
    generator = np.random.default_rng(0)
    removal = {
        g.name: generator.choice(g.size, max(1, int(0.4 * g.size)), replace=False) for g in couplings.groups
    }
    pruned = given.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5
    assert proof.effect > 1e-3
    assert couplings.parameters(removal) == sum(p.numel() for p in pruned.graph_module.parameters())
    assert couplings.macs(removal) == cost(pruned).macs
    assert couplings.macs() == cost(given).macs
