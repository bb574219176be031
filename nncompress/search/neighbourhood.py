"""Recipes near one: every strength of it, and every layer's bits, a few steps more or less.

A recipe with a budget is uniform: what is lost counts the same in all layers. Near it are other budgets, and
the same ones with what some layers lose counting more or less (`--loss-weight`): so what varies layer by
layer begins at the uniform recipe itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from nncompress.passes import Factorize, Pass, PruneNodes, Quantize, Reduce
from nncompress.search.candidates import Bits, Recipe, by_ratios, recipe_key
from nncompress.search.layers.sensitivity import Effect
from nncompress.search.layers.strengths import gain

STEPS = 3  # so far from the middle
MOVED = 4  # settings at once
VARIED = 0.05  # a step of a layer's strength
BUDGET = 0.0125  # a step of the share that a pass is to leave: half of what bisection tells apart
COUNTS = 2.0  # a step of the weight of a layer's losses
LOSSES = "losses under "  # such a weight is a setting of its own, beside the pass's
UNCHANGED = {PruneNodes.name: 0.0, Factorize.name: 1.0, Reduce.name: 1.0, Quantize.name: 32.0}
LIMITS = {PruneNodes.name: (0.0, 0.95), Factorize.name: (0.05, 1.0)}
BUDGETS = ("macs", "params")
SEVERAL = "the whole"  # where a budget applies
BLOCKS = "drop_blocks"  # how many residual blocks go, of the whole, too

Place = tuple[str, str]  # method; layer or group


class Neighbourhood:
    """Recipes near `middle`.

    Of a pass with a budget the budget and how much each layer's losses count, of passes with strengths per
    layer those of all layers, also of the ones that `middle` skips; of a rounded model the bits of
    each layer.

    Args:
        blocks: how many residual blocks there are.

    Attributes:
        values: what each setting may be, in order.
        middle: the positions in `values` that are `middle` itself.
    """

    def __init__(self, middle: Recipe, effects: Sequence[Effect], blocks: int = 0) -> None:
        self._middle, self._bits, self._effects = middle, Bits.of(effects), effects
        self._layered = any(getattr(each, "ratios", ()) for each in middle)
        given: dict[Place, float] = self._strengths(middle)
        done = [(e.method, e.where) for e in effects if e.error is not None]
        if self._layered:
            wanted = [place for place in done if place[0] in (PruneNodes.name, Factorize.name)]
        else:
            wanted = [
                (LOSSES + each.name, where)
                for each in middle
                if _budget(each) in BUDGETS
                for method, where in done
                if method == _of(each.name)
            ]
        given = {place: given.get(place, _unchanged(place)) for place in dict.fromkeys((*given, *wanted))}
        measured = {e.strength for e in effects if e.method == Quantize.name and e.error is not None}
        levels = {32.0, 8.0, *measured}
        self.values: dict[str, tuple[float, ...]] = {}
        self._places: dict[str, Place] = {}
        for (method, where), now in given.items():
            if method == Quantize.name:
                around = tuple(sorted(levels, reverse=True))
            elif method.startswith(LOSSES):
                around = tuple(now * COUNTS**k for k in range(-STEPS, STEPS + 1))
            elif where == SEVERAL:
                around = _around(now, BUDGET, 0.05, 0.975)
            elif where == BLOCKS:
                around = _around(now, 1, 1, max(blocks, now))
            else:
                around = _around(now, VARIED, *LIMITS[method])
            if len(around) > 1:
                self.values[f"{method} {where}"] = around
                self._places[f"{method} {where}"] = method, where
        found = self.positions(middle)
        if found is None:  # layers of it that were not measured: nothing is known of what is near
            self.values, self._places = {}, {}
        self.middle = found or {}

    def positions(self, recipe: Recipe) -> dict[str, int] | None:
        """Where each setting of a recipe stands in `values`; None where it is not near."""
        strengths = self._strengths(recipe)
        found = {}
        for name, values in self.values.items():
            place = self._places[name]
            wanted = strengths.get(place, _unchanged(place))
            close = [i for i, value in enumerate(values) if abs(value - wanted) < 1e-6 * max(1.0, wanted)]
            if not close:
                return None
            found[name] = close[0]
        return found if settled_key(self.recipe(found)) == settled_key(recipe) else None

    def recipe(self, positions: Mapping[str, int]) -> Recipe:
        """The recipe with these settings."""
        chosen: dict[str, dict[str, float]] = {method: {} for method, _ in self._places.values()}
        chosen |= {method: {} for method in UNCHANGED}
        for name, position in positions.items():
            method, where = self._places[name]
            if (strength := self.values[name][position]) != _unchanged((method, where)):
                chosen[method][where] = strength
        if self._layered:
            recipe = by_ratios(chosen)
        else:
            recipe = tuple(
                self._weighed(each, unit, chosen) for each in self._middle if (unit := _budget(each))
            )
        rounded: Recipe = tuple(each for each in self._middle if isinstance(each, Quantize))
        if rounded and self._bits.worst:
            rounded = self._bits.rounding(chosen[Quantize.name], recipe)
        return recipe + rounded

    def steps(self, saving: bool) -> Iterator[Recipe]:
        """The middle with one setting changed: a layer's strength or bits, or a budget. How much losses count
        is not among these: it saves nothing by itself.

        Args:
            saving: a step more (of those first of which it costs least, by the effects), else a step less.
        """
        prices: dict[Place, float] = {}
        for e in self._effects:
            if e.error is not None:
                saved = max(e.macs, e.bytes) if e.time is None else gain(e, "time")
                prices[e.method, e.where] = e.error**2 / max(saved, 1e-6)
        moves: list[tuple[float, int, Recipe]] = []
        for number, (name, (method, where)) in enumerate(self._places.items()):
            if method.startswith(LOSSES):
                continue
            up = saving == (method in (PruneNodes.name, Quantize.name) and where != SEVERAL)
            position = self.middle[name] + (1 if up else -1)
            if 0 <= position < len(self.values[name]):
                price = prices.get((method, where), 0.0) * (1 if saving else -1)
                moves.append((price, number, self.recipe({**self.middle, name: position})))
        for *_, recipe in sorted(moves, key=lambda move: move[:2]):
            if recipe:
                yield recipe

    def moved(self, generator: Random) -> dict[str, int]:
        """Positions of the middle with one to `MOVED` settings elsewhere, by a step or two."""
        found = dict(self.middle)
        for name in generator.sample(sorted(found), min(generator.randint(1, MOVED), len(found))):
            here = found[name]
            others = [i for i in range(len(self.values[name])) if 0 < abs(i - here) <= 2]
            found[name] = generator.choice(others)
        return found

    @staticmethod
    def _weighed(each: Pass, unit: str, chosen: Mapping[str, Mapping[str, float]]) -> Pass:
        if unit == BLOCKS:
            return replace(each, **{BLOCKS: int(chosen[each.name].get(BLOCKS, getattr(each, BLOCKS)))})
        share = chosen[each.name].get(SEVERAL, getattr(each, unit))
        weights = tuple(f"{where}={factor:g}" for where, factor in chosen.get(LOSSES + each.name, {}).items())
        settings: dict[str, Any] = {unit: share, "loss_weight": weights}
        return replace(each, **settings)

    def _strengths(self, recipe: Recipe) -> dict[Place, float]:
        found: dict[Place, float] = {}
        for each in recipe:
            if unit := _budget(each):
                found[each.name, BLOCKS if unit == BLOCKS else SEVERAL] = getattr(each, unit)
            for method, pairs in ((each.name, "ratios"), (LOSSES + each.name, "loss_weight")):
                for pair in getattr(each, pairs, ()):
                    where, _, strength = pair.rpartition("=")
                    found[method, where] = float(strength)
        rounded = [each for each in recipe if isinstance(each, Quantize)]
        for where in self._bits.worst if rounded else ():
            bits = [each.weight_bits for each in rounded if where not in {k.rstrip("*.") for k in each.keep}]
            found[Quantize.name, where] = min(bits, default=UNCHANGED[Quantize.name])
        return found


def settled_key(recipe: Recipe) -> str:
    """The same for recipes that differ in the order only in which they name layers."""

    def settled(each: Pass) -> Pass:
        lists = ("ratios", "keep", "loss_weight")
        return replace(
            each, **{name: tuple(sorted(getattr(each, name))) for name in lists if hasattr(each, name)}
        )

    return recipe_key(tuple(settled(each) for each in recipe))


def _budget(each: Pass) -> str:
    return next((unit for unit in (*BUDGETS, BLOCKS) if getattr(each, unit, None)), "")


def _of(name: str) -> str:
    """The method whose effects name the layers that a pass weighs."""
    return PruneNodes.name if name == PruneNodes.name else Factorize.name


def _unchanged(place: Place) -> float:
    return 1.0 if place[0].startswith(LOSSES) else UNCHANGED[place[0]]


def _around(now: float, step: float, lowest: float, highest: float) -> tuple[float, ...]:
    found = [now if k == 0 else round(now + k * step, 6) for k in range(-STEPS, STEPS + 1)]
    return tuple(each for each in found if each == now or lowest <= each <= highest)
