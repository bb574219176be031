"""`prune-nodes`: remove whole nodes (channels, hidden units, attention heads) and everything tied to them.

Which indices stand or fall together is found by `nncompress.analysis.couplings`, for any architecture. The
result is smaller in every runtime, needs no special kernels and computes exactly what the original computes
with the removed nodes' consumer weights at zero: that is checked on the model at hand (`--verify`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Literal

from nncompress.errors import ModelFileError, UsageError
from nncompress.passes.base import Change, Context, Pass, option

if TYPE_CHECKING:
    from nncompress.analysis.couplings import Couplings, Group
    from nncompress.ir import Model


@dataclass(frozen=True)
class PruneNodes(Pass):
    """Remove a share of every group of interchangeable nodes, least important first."""

    name = "prune-nodes"
    summary = "remove whole nodes (channels, heads, hidden units) with everything tied to them"
    example = "nncompress prune-nodes model.pt2 --ratio 0.3"

    ratio: float = option(0.3, above=0, below=1, help="remove this share of every group's nodes")
    criterion: Literal["l1", "l2", "random"] = option("l2", help="what makes a node unimportant")
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers whose nodes stay, e.g. 'head*' (repeatable)"
    )
    round_to: int = option(1, least=1, help="leave a multiple of this many nodes where a group has that many")
    verify: bool = option(True, help="prove the result against the original with zeroed consumers")

    def requires(self, model: Model, context: Context) -> None:
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ModelFileError(f"prune-nodes: {name} has NaN or infinite values")

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.analysis.couplings import find_couplings, remove_proven, remove_units

        context.progress.step("finding what is tied together", 0, 2)
        couplings = find_couplings(model)
        removal = self._select(model, couplings, context)
        if not removal:
            return []
        context.progress.step("removing nodes", 1, 2)
        numbers: dict[str, float] = {}
        refused: dict[str, str] = {}
        if self.verify:
            proven = remove_proven(couplings, removal)
            pruned, refused = proven.model, proven.refused
            numbers = {"proof_error": proven.proof.error, "effect": proven.proof.effect}
        else:
            pruned = model.copy()
            remove_units(pruned, removal)
        if refused:
            context.notes.append(
                f"prune-nodes: {len(refused)} of {len(removal)} groups stay whole, because their removal"
                " could not be proven. That is a defect of nncompress: please report the architecture."
            )
        changes = []
        for group in couplings.groups:
            gone = [int(u) for u in removal.get(group.name, ())]
            if group.name in refused:
                changes.append(Change(group.name, f"left: {refused[group.name]}", applied=False))
            elif gone:
                what = f"{group.size - len(gone)} of {group.size} nodes left"
                details = {"nodes_before": group.size, "removed": gone, **numbers}
                changes.append(Change(group.name, what, details))
        if any(change.applied for change in changes):
            model.graph_module = pruned.graph_module
        return changes

    def _select(self, model: Model, couplings: Couplings, context: Context) -> dict[str, list[int]]:
        """The units to remove, per group, worst first."""
        import numpy as np

        from nncompress.analysis.couplings.scores import magnitude

        groups = [g for g in couplings.groups if not self._excluded(g)]
        if not groups:
            raise UsageError(
                "prune-nodes: no nodes can be removed",
                got="every node is fixed" + (" or excluded" if self.exclude else ""),
                remedy="nncompress inspect --units shows why",
            )
        generator = np.random.default_rng(context.seed)
        removal = {}
        for group in groups:
            count = self._count(group.size)
            if count == 0:
                continue
            if self.criterion == "random":
                scores = generator.random(group.size)
            else:
                scores = magnitude(model, group, power=1 if self.criterion == "l1" else 2)
            removal[group.name] = [int(u) for u in np.argsort(scores, kind="stable")[:count]]
        return removal

    def _excluded(self, group: Group) -> bool:
        return any(fnmatch(layer, pattern) for layer in group.layers for pattern in self.exclude)

    def _count(self, size: int) -> int:
        """How many of `size` nodes go: the ratio, rounded so that a multiple of `round_to` stays."""
        left = max(1, size - round(self.ratio * size))
        if self.round_to > 1 and size >= self.round_to:
            left = min(size, max(1, round(left / self.round_to)) * self.round_to)
        return size - left
