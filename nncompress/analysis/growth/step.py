"""One step of growth: where, how much, and the grown model."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch

from nncompress.analysis.couplings import Couplings, Group, find_couplings
from nncompress.analysis.couplings.groups import layer_of
from nncompress.analysis.growth.amounts import Amount, Budget, behind, new_units
from nncompress.analysis.growth.need import need, require_fitting_labels
from nncompress.analysis.growth.new_units import NewUnits
from nncompress.analysis.growth.proof import grow_proven
from nncompress.analysis.growth.units import normalized_groups
from nncompress.data import Dataset
from nncompress.errors import DataError
from nncompress.ir import Model
from nncompress.ir.edit.widen import Gathers
from nncompress.ir.graph.ops import op_name
from nncompress.progress import Progress


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        where: "uniform", "std", "gradient" (see `need`), or "auto": by gradient with labels that fit the
            model, by std with data, else uniform.
        groups: only so many, those in most need; None for all.
        init: of new units: "he", "xavier" or "auto" (see `initial`), or "split": copies.
        exclude: patterns of layers that get none.
    """

    amount: Amount
    budget: Budget = field(default_factory=Budget)
    where: str = "auto"
    groups: int | None = None
    init: str = "auto"
    exclude: tuple[str, ...] = ()

    def chosen(self, model: Model, data: Dataset | None) -> str:
        """`where`, "auto" resolved."""
        if self.where != "auto":
            return self.where
        if data is None:
            return "uniform"
        try:
            require_fitting_labels(model, data)
        except DataError:  # none, or (of images that are to be reconstructed) not of the model's outputs
            return "std"
        return "gradient"


@dataclass(frozen=True)
class Growth:
    """What one step did.

    Attributes:
        model: the grown model, or the one given where nothing grew.
        gathers: per widened tensor and dim, where each index comes from.
        sizes: group -> nodes before; added: group -> new nodes; scores: group -> need.
        beside: group -> the node that each new one was placed beside.
        copies: groups whose new nodes are copies.
        left: group -> why it got none.
        error: how far the outputs moved, relative to their size.
    """

    model: Model
    gathers: dict[str, Gathers]
    sizes: dict[str, int]
    added: dict[str, int]
    beside: dict[str, list[int]]
    scores: dict[str, float]
    copies: frozenset[str]
    left: dict[str, str]
    error: float


def is_quantized(model: Model) -> bool:
    return any("quantize_per" in op_name(node) for node in model.graph.nodes)


def growable(couplings: Couplings, exclude: tuple[str, ...]) -> list[str]:
    """Names of the groups none of whose layers that make the units is excluded by a pattern."""

    def makers(group: Group) -> set[str]:
        return {layer_of(m.tensor) for m in group.producers or group.members}

    return [
        g.name
        for g in couplings.groups
        if not any(fnmatch(layer, pattern) for layer in makers(g) for pattern in exclude)
    ]


def grow_step(
    model: Model,
    wish: Wish,
    data: Dataset | None,
    *,
    limit: int | None,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> Growth:
    """Grow a copy of `model` (float, on the CPU).

    Args:
        limit, batch_size: of the samples that need is measured on.

    Raises:
        DataError: the labels do not fit the model's first output (by gradient).
    """
    progress.step("finding what is tied together", 0, 1)
    couplings = find_couplings(model)
    sizes = {name: couplings[name].size for name in growable(couplings, wish.exclude)}
    scores = need(
        wish.chosen(model, data), model, couplings, data,
        limit=limit, batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    scores = {name: scores[name] for name in sizes}
    if wish.groups is not None:
        most = sorted(scores, key=lambda name: -scores[name])[: wish.groups]
        scores = {name: score for name, score in scores.items() if name in most}
    whole = normalized_groups(couplings)
    wanted = new_units(model, couplings, scores, wish.amount, wish.budget, whole=whole)
    copies = frozenset(wanted) if wish.init == "split" else frozenset(whole & wanted.keys())
    growth = {n: behind(couplings[n], units, split=n in copies) for n, units in wanted.items()}
    progress.step("adding nodes", 0, 1)
    scale = "auto" if wish.init == "split" else wish.init
    grown = grow_proven(model, NewUnits(growth, copies, scale, seed), couplings)
    left = {n: f"a norm runs over its {sizes[n]} nodes, which can only double" for n in whole & scores.keys()}
    left = {n: why for n, why in left.items() if n not in wanted} | grown.refused
    added = {n: units for n, units in wanted.items() if n not in grown.refused}
    larger, beside = grown.model if added else model, {n: growth[n] for n in added}
    return Growth(larger, grown.gathers, sizes, added, beside, scores, copies, left, grown.error)
