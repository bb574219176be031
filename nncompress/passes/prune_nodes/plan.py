"""Which nodes go: ranked once, chosen from by an amount."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nncompress.analysis.compensation import Cut
from nncompress.analysis.couplings import Couplings
from nncompress.analysis.couplings.summary import why_fixed
from nncompress.analysis.curvature.autograd import differentiable_outputs
from nncompress.analysis.importance import (
    CRITERIA,
    Choice,
    Rankings,
    Reconstruction,
    Setting,
    group_choices,
    rank,
    separate_choices,
)
from nncompress.analysis.importance.choices import matches
from nncompress.analysis.importance.costs import Costs
from nncompress.analysis.importance.selection import (
    by_ratio,
    by_share,
    by_threshold,
    normalized,
    outliers,
    uniform_budget,
    within_budget,
)
from nncompress.analysis.observe.residual import Branch, find_branches, names
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.options import LossWeights
from nncompress.passes.base import Context
from nncompress.passes.cut import cut_of


@dataclass(frozen=True)
class Amount:
    """How many nodes go: one of the first seven says it.

    Attributes:
        ratio: share of the nodes; ratios: of each group; share_lost: of what a group's nodes are worth.
        threshold: nodes worth less than that; outliers: outside the mean ± that many variances.
        macs, params: share of them that may be left.
        scope: nodes are compared within each group, everywhere, or ("auto") everywhere where that can be.
        round_to: a multiple of this many is left.
        weights: by how much losses count, for macs and params; None: all the same.
    """

    ratio: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    share_lost: float | None = None
    threshold: float | None = None
    outliers: float | None = None
    macs: float | None = None
    params: float | None = None
    scope: Literal["auto", "group", "global"] = "auto"
    round_to: int = 1
    weights: LossWeights | None = None


@dataclass(frozen=True)
class Plan:
    """What goes.

    Attributes:
        removed: choice -> units, for choices that lose any.
        branches: all residual branches of the model; dropped: those that are left out, by their name.
        losses: choice -> what its criterion says is lost; branch name likewise.
    """

    choices: tuple[Choice, ...]
    removed: dict[str, list[int]]
    branches: tuple[Branch, ...]
    dropped: dict[str, Branch]
    losses: dict[str, float]

    @property
    def cut(self) -> Cut:
        return cut_of(self.choices, self.removed, tuple(self.dropped.values()))


@dataclass(frozen=True)
class Ranked:
    """What could go, in what order: ranked once, chosen from as often as wanted."""

    model: Model
    comparable: bool
    choices: tuple[Choice, ...]
    rankings: Rankings
    branches: tuple[Branch, ...]
    dropped: dict[str, Branch]
    dropped_losses: dict[str, float]

    def plan(self, amount: Amount) -> Plan:
        """Choose.

        Raises:
            UsageError: the budget cannot be met.
        """
        gone = {layer.name for branch in self.dropped.values() for layer in branch.layers}
        removed = (
            _select(amount, self.model, self.comparable, self.choices, self.rankings, gone)
            if self.choices
            else {}
        )
        losses = dict(self.dropped_losses)
        for name, units in removed.items():
            loss = self.rankings[name].loss
            losses[name] = float(loss[min(len(units), len(loss) - 1)])
        return Plan(self.choices, removed, self.branches, self.dropped, losses)


def ranked(
    model: Model,
    couplings: Couplings,
    context: Context,
    criterion: str,
    *,
    separate: bool = False,
    exclude: tuple[str, ...] = (),
    drop_blocks: int = 0,
    selects: bool = True,
    only: Collection[str] = (),
) -> Ranked:
    """Rank what may go.

    Args:
        separate: residual blocks are cut one by one, not the stream that they share.
        exclude: patterns of layers whose nodes stay.
        drop_blocks: how many residual blocks are left out.
        selects: nodes are to go, not whole blocks only.
        only: names of the groups that nodes may go from; empty: from all.

    Raises:
        UsageError: nothing can be removed.
    """
    if separate:
        choices, branches = separate_choices(model, couplings)
    else:
        choices, branches = group_choices(model, couplings), find_branches(model)
    dropped, losses = _drop(drop_blocks, exclude, model, branches, context)
    gone = {layer.name for branch in dropped.values() for layer in branch.layers}
    choices = [c for c in choices if not c.excluded(exclude) and not (set(c.layers) & gone)]
    if not selects:
        return Ranked(model, False, (), {}, tuple(branches), dropped, losses)
    if not choices:
        tied = " or tied to a residual block that is left out" if dropped else ""
        why = "" if couplings.groups else f": {why_fixed(couplings)}"
        raise UsageError(
            "prune-nodes: no nodes can be removed",
            got="every node is fixed" + (" or excluded" if exclude else "") + tied + why,
            remedy="leave out --ratio and the like, and run prune-nodes again on the result"
            if dropped
            else "nncompress inspect --units shows why",
        )
    choices = _named(choices, only) if only else choices
    comparable = CRITERIA[criterion].comparable
    setting = Setting(
        model, choices, context.data, context.limit, context.batch_size, context.seed, context.progress
    )
    if comparable:  # by how the outputs change
        with differentiable_outputs(model) as discrete:
            rankings = rank(criterion, setting)
        if discrete:
            context.notes.append(
                f"prune-nodes: {', '.join(discrete)}: discrete, so nodes are judged by what it is chosen from"
            )
    else:
        rankings = rank(criterion, setting)
    return Ranked(model, comparable, tuple(choices), rankings, tuple(branches), dropped, losses)


def _named(choices: Sequence[Choice], only: Collection[str]) -> list[Choice]:
    """The choices that `--ratios` names.

    Raises:
        UsageError: a name is not that of a choice: the user meant to remove nodes there.
    """
    known = {c.name: c for c in choices}
    for name in only:
        if name not in known:
            raise UsageError(
                f"prune-nodes: --ratios {name} names no group whose nodes can be removed",
                expected=", ".join(list(known)[:5]) + (", …" if len(known) > 5 else ""),
                remedy="nncompress inspect --units shows the groups",
            )
    return [known[name] for name in known if name in only]


def _drop(
    count: int, exclude: tuple[str, ...], model: Model, branches: Sequence[Branch], context: Context
) -> tuple[dict[str, Branch], dict[str, float]]:
    """The residual branches that contribute least."""
    if not count:
        return {}, {}
    named = dict(zip(names(branches), branches))
    named = {
        name: b for name, b in named.items() if not any(matches(layer.name, exclude) for layer in b.layers)
    }
    if count > len(named):
        raise UsageError(
            "prune-nodes: --drop-blocks asks for more residual blocks than there are",
            got=str(count),
            expected=f"at most {len(named)}",
        )
    assert context.data is not None
    contributions = Reconstruction(
        model,
        (),
        list(named.values()),
        context.data,
        limit=context.limit,
        batch_size=context.batch_size,
        seed=context.seed,
        progress=context.progress,
    ).branch_losses
    losses = dict(zip(named, contributions))
    least = sorted(named, key=losses.__getitem__)[:count]
    return {name: named[name] for name in named if name in least}, {n: losses[n] for n in least}


def _select(
    amount: Amount,
    model: Model,
    comparable: bool,
    choices: Sequence[Choice],
    rankings: Rankings,
    gone: set[str],
) -> dict[str, list[int]]:
    if amount.outliers is not None:
        found = {c.name: outliers(rankings[c.name].scores, amount.outliers) for c in choices}
        return {name: sorted(units) for name, units in found.items() if units}
    counts = _counts(amount, model, comparable, choices, rankings, gone)
    return {name: rankings[name].removed(count) for name, count in counts.items() if count}


def _counts(
    amount: Amount,
    model: Model,
    comparable: bool,
    choices: Sequence[Choice],
    rankings: Rankings,
    gone: set[str],
) -> dict[str, int]:
    everywhere = amount.scope == "global" or (amount.scope == "auto" and comparable)
    if everywhere and not comparable:
        rankings = normalized(rankings)
    if (weights := amount.weights) is not None:
        rankings = {c.name: rankings[c.name].scaled(weights.of(c.names)) for c in choices}
    if amount.threshold is not None:
        return by_threshold(choices, rankings, amount.threshold, amount.round_to)
    for unit, share in (("macs", amount.macs), ("params", amount.params)):
        if share is None:
            continue
        costs = Costs(model, choices, unit, gone)
        method = within_budget if everywhere else uniform_budget
        counts = method(choices, rankings, costs, share, amount.round_to, f"--{unit}")
        if unit == "params":  # what selecting channels stores counts too
            share -= _stored(choices, counts) / costs.total
            counts = method(choices, rankings, costs, share, amount.round_to, f"--{unit}")
        return counts
    if amount.ratios:
        return {
            name: count
            for c in choices
            for name, count in by_ratio(
                [c], rankings, amount.ratios[c.name], amount.round_to, everywhere=False
            ).items()
        }
    if amount.ratio is None:
        return by_share(choices, rankings, amount.share_lost or 0.0, amount.round_to)
    everywhere = amount.scope == "global"
    return by_ratio(choices, rankings, amount.ratio, amount.round_to, everywhere=everywhere)


def _stored(choices: Sequence[Choice], counts: dict[str, int]) -> int:
    """Values that narrowed branches add: the indices of what they read, and for what they write the places
    and a constant."""
    added = 0
    for c in choices:
        if counts[c.name]:
            added += {"group": 0, "reads": c.size - counts[c.name], "writes": 2 * c.size}[c.kind]
    return added
