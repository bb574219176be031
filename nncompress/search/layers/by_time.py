"""Widths, ranks and precisions of all layers together, by the error that they cost per second that they save.

Of each layer is known what it takes in float and in int8, at its full width and at the half (the machine's
table of latencies), what conversions at the borders of int8 take, what fewer nodes and ranks of it save of
the whole model in float, and how far each of these moves the outputs. Squared errors of different choices
add up, nearly; seconds do, too. So at one price, seconds per squared error, a layer in float, and the same in
int8, has one best width and rank, whatever the others have; which of them are in int8 is then a minimum cut
(`Int8Cut`), and all choices together are the best of all that take as long. The price of a wanted time is
found as the slope between what was found for less time and for more: every step lands on the convex hull of
what can be had.

Source: Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from nncompress.analysis.int8_cut import Times
from nncompress.passes import Factorize, PruneNodes, Quantize
from nncompress.passes.quantize.by_clock import TimedLayers
from nncompress.results import Estimate
from nncompress.search.layers.sensitivity import Effect
from nncompress.search.layers.strengths import gain

STEPS = 40  # of the price, at most; a hull has fewer edges between two times
FURTHEST = 1e3  # an error beyond that, infinite where outputs are no numbers, counts as this
STRENGTHS = (PruneNodes.name, Factorize.name)


@dataclass(frozen=True)
class Choice:
    """What to do with each layer.

    Attributes:
        seconds: of all layers and conversions, by the times of single ones.
        error: squared, relative to the outputs.
        in_float: layers that could run in int8, and do not.
        strengths: per method, of layers and groups.
    """

    seconds: float
    error: float
    in_float: frozenset[str]
    strengths: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class _Option:
    """One width and rank of one layer: seconds saved in float and in int8."""

    floats: float
    int8: float
    error: float
    strengths: tuple[tuple[str, float], ...]  # by method


FULL = _Option(0.0, 0.0, 0.0, ())


class ByTime:
    """What to choose for a time.

    Args:
        timed: the layers.
        effects: of single layers; those that were not measured are as bad in int8 as others on average, and
            keep their width and rank.
    """

    def __init__(self, timed: TimedLayers, effects: Sequence[Effect]) -> None:
        self._cut, self._times = timed.cut, timed.times.layers
        self.names = timed.names
        done = [e for e in effects if e.error is not None]
        rounded = {e.where: _squared(e) for e in done if e.method == Quantize.name and e.strength == 8}
        usual = fmean(rounded.values()) if rounded else 0.0
        self._rounded = {name: rounded.get(name, usual) for name in self.names}
        self._floats = sum(times.floats for times in self._times.values())
        ladders: dict[str, list[Effect]] = {}
        for effect in done:
            if effect.method in STRENGTHS and gain(effect, "time") > 0:
                ladders.setdefault(effect.where, []).append(effect)
        self._options = {
            where: _options(ladder, self._floats, _share_in_int8(timed, where))
            for where, ladder in ladders.items()
        }
        self._at: dict[float, Choice] = {}  # by price

    def choice(self, share: float) -> Choice:
        """The least error within this share of what all layers take in float; where they cannot be so fast,
        the fastest."""
        wanted = share * self._floats
        fast = self._priced(0.0)
        slow = Choice(self._floats, 0.0, frozenset(self.names), {method: {} for method in STRENGTHS})
        for _ in range(STEPS):
            if not fast.seconds < slow.seconds or not fast.error > slow.error:
                break
            price = (slow.seconds - fast.seconds) / (fast.error - slow.error)
            found = self._priced(price)
            line = fast.seconds + price * fast.error
            if found.seconds + price * found.error >= line * (1 - 1e-9):
                break
            fast, slow = (found, slow) if found.seconds <= wanted else (fast, found)
        return fast

    def _priced(self, price: float) -> Choice:
        if price not in self._at:
            self._at[price] = self._least(price)
        return self._at[price]

    def _least(self, price: float) -> Choice:
        """Seconds + price × squared error are least."""
        best: dict[str, tuple[_Option, _Option]] = {}
        for where, options in self._options.items():
            best[where] = (
                min(options, key=lambda o: price * o.error - o.floats),
                min(options, key=lambda o: price * o.error - o.int8),
            )
        costs = {}
        for name in self.names:
            if name not in self._times:  # it goes with its neighbours, but for what its rounding costs
                costs[name] = Times(0.0, price * self._rounded[name])
                continue
            times, (floats, int8) = self._times[name], best.get(name, (FULL, FULL))
            costs[name] = Times(
                times.floats - floats.floats + price * floats.error,
                times.int8 - int8.int8 + price * (int8.error + self._rounded[name]),
            )
        in_float, total = self._cut.least(costs)
        error, strengths = 0.0, {method: dict[str, float]() for method in STRENGTHS}
        for name in self.names:
            error += 0.0 if name in in_float else self._rounded[name]
        for where, (floats, int8) in best.items():
            chosen = floats if where in in_float or where not in self._times else int8
            error += chosen.error
            if where not in self._times:
                total += price * chosen.error - min(chosen.floats, chosen.int8)
            for method, strength in chosen.strengths:
                strengths[method][where] = strength
        return Choice(total - price * error, error, frozenset(in_float), strengths)


def with_time(effects: Sequence[Effect], timed: TimedLayers) -> tuple[Effect, ...]:
    """The effects, those of rounding with what it saves of all layers' time, by the times of single ones
    between others in int8; layers of which none was measured as others are on average."""
    known = [e for e in effects if e.method == Quantize.name and e.strength == 8 and e.error is not None]
    missing = [name for name in timed.names if name not in {e.where for e in known}] if known else []
    error = fmean(map(_squared, known)) ** 0.5 if known else 0.0
    size = fmean(e.bytes for e in known) if known else 0.0
    guessed = [Effect(Quantize.name, name, 8, error, 0.0, size, 0.0, "", "") for name in missing]
    total = sum(times.floats for times in timed.times.layers.values())

    def told(effect: Effect) -> Effect:
        times = timed.times.layers.get(effect.where)
        if effect.method != Quantize.name or times is None or not total:
            return effect
        saved = (times.floats - times.int8) / total
        return replace(effect, time=Estimate(saved, saved, saved))

    return tuple(map(told, (*effects, *guessed)))


def _options(ladder: Sequence[Effect], floats: float, in_int8: float) -> list[_Option]:
    """Every width with every rank. Ranks save of what the nodes that were removed leave."""
    nodes, ranks = ([e for e in ladder if e.method == method] for method in STRENGTHS)
    found = []
    for few in (None, *nodes):
        for low in (None, *ranks):
            left = 1.0 if few is None else 1 - few.strength
            taken = [each for each in (few, low) if each is not None]
            saved = floats * sum(gain(e, "time") * (left if e is low else 1.0) for e in taken)
            error = sum(map(_squared, taken))
            strengths = tuple((e.method, e.strength) for e in taken)
            found.append(_Option(saved, saved * in_int8, error, strengths))
    return found


def _share_in_int8(timed: TimedLayers, where: str) -> float:
    """What fewer outputs of a layer save in int8, as a share of what they save in float: by half of them, and
    never more than of the time that it takes in either; where that is not known, as the layer itself (of a
    group that is named after none that was timed: as all layers).
    """
    times = timed.times.layers.get(where)
    if times is None:
        every = timed.times.layers.values()
        return sum(each.int8 for each in every) / max(sum(each.floats for each in every), 1e-12)
    halved, usual = timed.times.halved(where), times.int8 / times.floats
    saved = 0.0 if halved is None else times.floats - halved.floats
    if halved is None or saved <= 0:
        return usual
    return min(max(times.int8 - halved.int8, 0.0) / saved, max(usual, 1.0))


def _squared(effect: Effect) -> float:
    error = effect.error or 0.0
    return (error if error < FURTHEST else FURTHEST) ** 2
