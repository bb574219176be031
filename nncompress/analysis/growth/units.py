"""Add units to groups of a model, in every tensor that the groups touch."""

from __future__ import annotations

import numpy as np
import torch

from nncompress.analysis.couplings import Couplings, find_couplings, fold_weights
from nncompress.analysis.couplings.labels import PIN
from nncompress.analysis.growth.initial import initialize
from nncompress.analysis.growth.new_units import NewUnits
from nncompress.ir import Model
from nncompress.ir.edit.resize import Survivors, read
from nncompress.ir.edit.widen import Gathers, repeat_runs, widen
from nncompress.ir.graph.ops import op_name


def grow_units(model: Model, new: NewUnits, couplings: Couplings | None = None) -> dict[str, Gathers]:
    """Add units, in place. What the model computes stays, as far as the couplings are right (`proof`).

    Args:
        couplings: of this very model, if they are known already.

    Returns:
        Per widened tensor and dim, where each index comes from.

    Raises:
        UsageError: an unknown group or unit.
        UnsupportedError: the result does not trace.
    """
    couplings = couplings or find_couplings(model)
    counts = couplings.widened(new.beside)
    if fold_weights(model):
        couplings = find_couplings(model)
        counts = couplings.widened(new.beside)
    gathers = gathers_of(couplings, counts)
    widen(model, counts, gathers)
    with torch.no_grad():
        initialize(model, couplings, new, gathers)
    return gathers


def gathers_of(couplings: Couplings, counts: Survivors) -> dict[str, Gathers]:
    """Per widened tensor and dim, where each index comes from."""
    found: dict[str, Gathers] = {}
    for name, dims in counts.tensors.items():
        for dim, roots in couplings.trace.dims(couplings.trace.tensors[name]):
            if dim in dims:
                places = np.where(roots == PIN, -np.arange(1, len(roots) + 1), roots)  # fixed: each its own
                found.setdefault(name, {})[dim] = repeat_runs(places, dims[dim])
    return found


def normalized_groups(couplings: Couplings) -> set[str]:
    """Groups that a norm takes statistics over: these stay only if every unit is copied equally often."""
    norms = {node.all_input_nodes[0]: (node, dims) for node, dims in couplings.trace.survivor_norms.items()}
    found = set()
    for group in couplings.groups:
        for site in group.sites:
            node, dims = norms.get(site.node, (None, ()))
            if node is None or site.dim not in dims:
                continue
            rows = site.unit.reshape(read(node, "num_groups"), -1) if op_name(node) == "group_norm" else None
            if rows is None or (rows != rows[:, :1]).any():  # whole groups of a group norm stand alone
                found.add(group.name)
    return found
