"""From options to ranks: one candidate per target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from nncompress.analysis.lowrank.ranks import Candidate, allocate, cheapest
from nncompress.analysis.weight_targets import Target
from nncompress.errors import UsageError
from nncompress.passes.factorize.latency import Place, Timing
from nncompress.passes.factors.forms.base import Form

NAMES = {"macs": "MACs", "parameters": "parameters", "latency": "latency"}  # of the units


@dataclass(frozen=True)
class Option:
    """One target with everything that it could become.

    Attributes:
        candidates: of all ranks; where latency was measured, only those that were faster.
        unit: "macs", "parameters" or "latency" (in nanoseconds): what is saved.
        dense: cost as it is.
        total: the error of replacing its weight by zero.
        elements: how many squared errors `total` sums over: those of the weight, or of one output vector.
        timings: where latency was measured, of each form and rank that was.
        slower: candidates that were measured not to be faster.
        weight: by how much its errors count more than other layers'.
        multiple: ranks are multiples of this.
    """

    target: Target
    forms: Mapping[str, Form]
    candidates: Sequence[Candidate]
    unit: str
    dense: int
    total: float
    elements: int
    timings: Mapping[Place, Timing] | None = None
    slower: Sequence[Candidate] = ()
    weight: float = 1.0
    multiple: int = 1

    def share(self, candidate: Candidate) -> float:
        """The candidate's time, of the dense layer's."""
        assert self.timings is not None
        return self.timings[candidate.form, candidate.ranks].share

    @property
    def nothing(self) -> str:
        """Why there is no candidate."""
        if self.timings is not None and not self.timings:
            if self.multiple > 1:
                return f"no rank that saves MACs is a multiple of {self.multiple}, at which its latency falls"
            return "no rank of it was timed"
        if not self.slower:
            return (
                f"no rank reduces its {NAMES[self.unit]}"
                if self.target.macs
                else "it multiplies nothing to save"
            )
        best = min(self.slower, key=self.share)
        took = f"{describe(self, best)} took {self.share(best):.2f} of its time"
        return f"no rank was measured to be faster, {took}"


@dataclass(frozen=True)
class Choice:
    """What becomes of one target: a candidate, or None and the reason.

    Attributes:
        measured: its timing, taken again after it was chosen.
    """

    option: Option
    candidate: Candidate | None
    reason: str = ""
    measured: Timing | None = field(default=None, compare=False)


def by_error(option: Option, limit: float, told: str) -> Choice:
    """The cheapest with an error below `limit`, if it is cheaper than the dense layer.

    Args:
        told: the limit as the user put it.
    """
    best = cheapest(option.candidates, limit)
    if best is not None and best.cost < option.dense:
        return Choice(option, best)
    slower = cheapest(option.slower, limit)
    if slower is not None:
        took = f"measured at {option.share(slower):.2f} of its time"
        return Choice(option, None, f"{told} needs {describe(option, slower)}, {took}")
    if not option.candidates:
        return Choice(option, None, option.nothing)
    needed = f"needs {describe(option, best)}" if best else "needs every rank"
    if best is None and option.timings is not None:
        needed = "needs more than any rank that was measured to be faster"
        return Choice(option, None, f"{told} {needed}")
    return Choice(option, None, f"{told} {needed}, which does not reduce its {NAMES[option.unit]}")


def by_rank(option: Option, rank: int) -> Choice:
    """A fixed rank (a layer that has fewer keeps all of them), the form with the least error."""
    wanted = {name: tuple(min(rank, full) for full in form.full_ranks) for name, form in option.forms.items()}
    found = [c for c in option.candidates if c.ranks == wanted[c.form]]
    best = min(found, key=lambda c: c.error, default=None)
    if best is not None and best.cost < option.dense:
        return Choice(option, best)
    return Choice(
        option,
        None,
        option.nothing if option.slower else f"rank {rank} does not reduce its {NAMES[option.unit]}",
    )


def by_ratio(option: Option, ratio: float) -> Choice:
    """The least error at no more than this share of the layer's own cost."""
    affordable = [c for c in option.candidates if c.cost <= ratio * option.dense]
    best = min(affordable, key=lambda c: c.error, default=None)
    if best is not None:
        return Choice(option, best)
    if option.timings is not None and not option.candidates:
        return Choice(option, None, option.nothing)
    return Choice(option, None, f"no rank has {ratio:.0%} of its {NAMES[option.unit]}")


def by_budget(
    before: int, options: Sequence[Option], share: float, unit: str, comparable: bool
) -> list[Choice]:
    """The ranks that lose least in all, with the model at no more than `share` of its cost.

    Args:
        before: the model's cost: MACs, parameters or nanoseconds.
        unit: "macs", "parameters" or "latency".
        comparable: errors of different layers are in one unit; otherwise each counts relative to its total.

    Raises:
        UsageError: out of reach; says what is within.
    """
    layers = []
    for option in options:
        scale = option.weight * (1.0 if comparable else 1 / max(option.total, 1e-300))
        pays = [c for c in option.candidates if c.cost < option.dense]
        layers.append([Candidate(c.form, c.ranks, c.cost, c.error * scale) for c in pays])
        layers[-1].append(Candidate("dense", (), option.dense, 0.0))
    fixed = before - sum(option.dense for option in options)
    least = fixed + sum(min(c.cost for c in layer) for layer in layers)
    if least > share * before:
        reachable = ceil(1000 * least / before) / 10
        raise UsageError(
            f"factorize cannot reach {100 * share:.4g}% of the model's {NAMES[unit]}",
            got=f"{fixed / before:.1%} are in layers that it skips" if unit != "latency" else "",
            expected=f"at least {reachable:.1f}%, with every rank at its {_extreme(unit)}"
            if least < before
            else "a model with a layer of which some rank was measured to be faster",
            remedy="ask for less, or prune nodes first",
        )
    chosen = allocate(layers, int(share * before) - fixed)
    choices = []
    for option, c in zip(options, chosen):
        original = next((o for o in option.candidates if (o.form, o.ranks) == (c.form, c.ranks)), None)
        reason = f"its {NAMES[unit]} {'is' if unit == 'latency' else 'are'} worth more here than elsewhere"
        if original is None and not option.candidates:
            reason = option.nothing
        choices.append(Choice(option, original, "" if original else reason))
    return choices


def describe(option: Option, candidate: Candidate) -> str:
    """rank 12 of 64, ranks 8 and 12 of 64 and 64."""
    full = option.forms[candidate.form].full_ranks
    ranks, of = (" and ".join(map(str, r)) for r in (candidate.ranks, full))
    return f"rank{'s' if len(full) > 1 else ''} {ranks} of {of}"


def _extreme(unit: str) -> str:
    return "fastest" if unit == "latency" else "lowest"
