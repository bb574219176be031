"""Which groups moved the outputs: each removal by itself, in the model as it was, nothing repaired."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from nncompress.analysis.couplings import find_couplings, fold_weights
from nncompress.analysis.couplings.proof import ZeroedReference
from nncompress.analysis.distance.contributions import TOLD, TRIED
from nncompress.ir import Model
from nncompress.ir.graph.verify import Distances
from nncompress.passes.base import Change


def group_contributions(
    original: Model, changes: Sequence[Change], inputs: tuple[Tensor, ...]
) -> dict[str, float]:
    """By group, how far its removal alone moves the outputs (`Drift.amount`): the worst, worst first.

    Measured for those that lose the most by the criterion's own account.

    Args:
        changes: of `prune-nodes`.
    """
    model = original.copy()
    fold_weights(model)
    couplings = find_couplings(model)
    known = {group.name for group in couplings.groups}
    removed = {c.where: c for c in changes if c.applied and c.where in known and "removed" in c.numbers}
    first = sorted(removed, key=lambda name: -removed[name].numbers["loss"])[:TRIED]
    effects = {}
    with torch.no_grad():
        reference = fx.Interpreter(model.graph_module).run(*(x.clone() for x in inputs))
        for name in first:
            run = ZeroedReference(couplings, {name: removed[name].numbers["removed"]})
            distances = Distances(original.outputs)
            distances.add(run.run(*(x.clone() for x in inputs)), reference)
            effects[name] = max(row.amount for row in distances.rows())
    worst = sorted(effects, key=effects.__getitem__, reverse=True)
    return {name: effects[name] for name in worst[:TOLD]}
