"""From options to ranks: one candidate per target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nncompress.analysis.cost import cost
from nncompress.analysis.ranks import Candidate, allocate, cheapest
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes.lowrank.forms import Form
from nncompress.passes.lowrank.targets import Target


@dataclass(frozen=True)
class Option:
    """One target with everything that it could become.

    Attributes:
        unit: "macs" or "parameters": what is saved.
        dense: cost as it is.
        total: the error of replacing its weight by zero.
        elements: how many squared errors `total` sums over: those of the weight, or of one output vector.
        latency: of measured candidates, the time as a share of the dense layer's.
    """

    target: Target
    forms: Mapping[str, Form]
    candidates: Sequence[Candidate]
    unit: str
    dense: int
    total: float
    elements: int
    latency: Mapping[Candidate, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What becomes of one target: a candidate, or None and the reason."""

    option: Option
    candidate: Candidate | None
    reason: str = ""


NOTHING = "no rank was measured to be faster"  # candidates are only missing where they were measured


def by_error(option: Option, limit: float, told: str) -> Choice:
    """The cheapest with an error below `limit`, if it is cheaper than the dense layer.

    Args:
        told: the limit as the user put it.
    """
    if not option.candidates:
        return Choice(option, None, NOTHING)
    best = cheapest(option.candidates, limit)
    if best is not None and best.cost < option.dense:
        return Choice(option, best)
    needed = f"needs {describe(option, best)}" if best else "needs every rank"
    return Choice(option, None, f"{told} {needed}, which does not reduce its {option.unit}")


def by_rank(option: Option, rank: int) -> Choice:
    """A fixed rank (a layer that has fewer keeps all of them), the form with the least error."""
    found = []
    for name, form in option.forms.items():
        wanted = tuple(min(rank, full) for full in form.full_ranks)
        found += [c for c in option.candidates if c.form == name and c.ranks == wanted]
    best = min(found, key=lambda c: c.error, default=None)
    if best is None or best.cost >= option.dense:
        return Choice(option, None, f"rank {rank} does not reduce its {option.unit}")
    return Choice(option, best)


def by_ratio(option: Option, ratio: float) -> Choice:
    """The least error at no more than this share of the layer's own cost."""
    affordable = [c for c in option.candidates if c.cost <= ratio * option.dense]
    best = min(affordable, key=lambda c: c.error, default=None)
    if best is None:
        return Choice(option, None, f"no rank has {ratio:.0%} of its {option.unit}")
    return Choice(option, best)


def by_budget(
    model: Model, options: Sequence[Option], share: float, unit: str, comparable: bool
) -> list[Choice]:
    """The ranks that lose least in all, with the model at no more than `share` of its cost.

    Args:
        unit: "macs" or "parameters".
        comparable: errors of different layers are in one unit; otherwise each counts relative to its total.

    Raises:
        UsageError: out of reach; says what is within.
    """
    before = getattr(cost(model), unit)
    layers = []
    for option in options:
        scale = 1.0 if comparable else 1 / max(option.total, 1e-300)
        pays = [c for c in option.candidates if c.cost < option.dense]
        layers.append([Candidate(c.form, c.ranks, c.cost, c.error * scale) for c in pays])
        layers[-1].append(Candidate("dense", (), option.dense, 0.0))
    fixed = before - sum(option.dense for option in options)
    least = fixed + sum(min(c.cost for c in layer) for layer in layers)
    if least > share * before:
        raise UsageError(
            f"factorize cannot reach {share:.0%} of the model's {unit}",
            got=f"{fixed / before:.1%} are in layers that it leaves alone",
            expected=f"at least {least / before:.1%}, with every rank at its lowest",
            remedy="ask for less, or prune nodes first",
        )
    chosen = allocate(layers, int(share * before) - fixed)
    choices = []
    for option, c in zip(options, chosen):
        original = next((o for o in option.candidates if (o.form, o.ranks) == (c.form, c.ranks)), None)
        reason = "" if original else f"its {unit} are worth more here than elsewhere"
        choices.append(Choice(option, original, reason))
    return choices


def describe(option: Option, candidate: Candidate) -> str:
    """rank 12 of 64, ranks 8 and 12 of 64 and 64."""
    full = option.forms[candidate.form].full_ranks
    ranks, of = (" and ".join(map(str, r)) for r in (candidate.ranks, full))
    return f"rank{'s' if len(full) > 1 else ''} {ranks} of {of}"
