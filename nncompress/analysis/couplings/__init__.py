"""Which indices of a model's tensors must be removed together, found by propagating labels through the graph.

`find_couplings(model)` gives the groups of units; `nncompress.analysis.couplings.remove_units` takes units
out; `prove` shows that the result is right. `docs/couplings.md` explains the method.
"""

from __future__ import annotations

from nncompress.analysis.couplings.groups import Couplings, Group, Member, Removal, Site
from nncompress.analysis.couplings.proof import Proof, ZeroedReference, check, prove
from nncompress.analysis.couplings.proven import Proven, remove_proven
from nncompress.analysis.couplings.removal import find_couplings, fold_weights, remove_units

__all__ = [
    "Couplings",
    "Group",
    "Member",
    "Proof",
    "Proven",
    "Removal",
    "Site",
    "ZeroedReference",
    "check",
    "find_couplings",
    "fold_weights",
    "prove",
    "remove_proven",
    "remove_units",
]
