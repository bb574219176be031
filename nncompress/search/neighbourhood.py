"""Recipes near one: every strength of it, and every layer's bits, a few steps more or less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nncompress.passes import Factorize, Pass, PruneNodes, Quantize, Reduce
from nncompress.search.candidates import VARIED, Bits, Recipe, by_ratios, recipe_key
from nncompress.search.sensitivity import Effect

STEPS = 3  # so far from the middle
BUDGET = 0.0125  # a step of the share that a pass is to leave: half of what bisection tells apart
UNCHANGED = {PruneNodes.name: 0.0, Factorize.name: 1.0, Reduce.name: 1.0, Quantize.name: 32.0}
LIMITS = {PruneNodes.name: (0.0, 0.95), Factorize.name: (0.05, 1.0)}
BUDGETS = ("macs", "params")
SEVERAL = "the whole"  # where a budget applies

Place = tuple[str, str]  # method; layer or group


class Neighbourhood:
    """Recipes near `middle`.

    Of a pass with a budget the budget, of passes with strengths per layer those of all layers, also of the
    ones that `middle` leaves alone; of a rounded model the bits of each layer.

    Attributes:
        values: what each setting may be, in order.
        middle: the positions in `values` that are `middle` itself.
    """

    def __init__(self, middle: Recipe, effects: Sequence[Effect]) -> None:
        self._middle, self._bits = middle, Bits.of(effects)
        self._layered = any(getattr(each, "ratios", ()) for each in middle)
        given: dict[Place, float] = self._strengths(middle)
        if self._layered:
            methods = (PruneNodes.name, Factorize.name)
            found = [(e.method, e.where) for e in effects if e.error is not None and e.method in methods]
            given = {
                place: given.get(place, UNCHANGED[place[0]]) for place in dict.fromkeys((*given, *found))
            }
        measured = {e.strength for e in effects if e.method == Quantize.name and e.error is not None}
        levels = {32.0, 8.0, *measured}
        self.values: dict[str, tuple[float, ...]] = {}
        self._places: dict[str, Place] = {}
        for (method, where), now in given.items():
            if method == Quantize.name:
                around = tuple(sorted(levels, reverse=True))
            elif where == SEVERAL:
                around = _around(now, BUDGET, 0.05, 0.975)
            else:
                around = _around(now, VARIED, *LIMITS[method])
            if len(around) > 1:
                self.values[f"{method} {where}"] = around
                self._places[f"{method} {where}"] = method, where
        self.middle = self.positions(middle) or {}

    def positions(self, recipe: Recipe) -> dict[str, int] | None:
        """Where each setting of a recipe stands in `values`; None where it is not near."""
        strengths = self._strengths(recipe)
        found = {}
        for name, values in self.values.items():
            method, where = self._places[name]
            wanted = strengths.get((method, where), UNCHANGED[method])
            close = [i for i, value in enumerate(values) if abs(value - wanted) < 1e-6]
            if not close:
                return None
            found[name] = close[0]
        return found if settled_key(self.recipe(found)) == settled_key(recipe) else None

    def recipe(self, positions: Mapping[str, int]) -> Recipe:
        """The recipe with these settings."""
        chosen: dict[str, dict[str, float]] = {method: {} for method in UNCHANGED}
        for name, position in positions.items():
            method, where = self._places[name]
            if (strength := self.values[name][position]) != UNCHANGED[method]:
                chosen[method][where] = strength
        if self._layered:
            recipe = by_ratios(chosen)
        else:
            recipe = tuple(
                replace(each, **{unit: chosen[each.name].get(SEVERAL, getattr(each, unit))})
                for each in self._middle
                if (unit := _budget(each))
            )
        rounded: Recipe = tuple(each for each in self._middle if isinstance(each, Quantize))
        if rounded and self._bits.worst:
            rounded = self._bits.rounding(chosen[Quantize.name], recipe)
        return recipe + rounded

    def _strengths(self, recipe: Recipe) -> dict[Place, float]:
        found: dict[Place, float] = {}
        for each in recipe:
            if unit := _budget(each):
                found[each.name, SEVERAL] = getattr(each, unit)
            for pair in getattr(each, "ratios", ()):
                where, _, strength = pair.rpartition("=")
                found[each.name, where] = float(strength)
        rounded = [each for each in recipe if isinstance(each, Quantize)]
        for where in self._bits.worst if rounded else ():
            bits = [each.weight_bits for each in rounded if where not in {k.rstrip("*.") for k in each.keep}]
            found[Quantize.name, where] = min(bits, default=UNCHANGED[Quantize.name])
        return found


def settled_key(recipe: Recipe) -> str:
    """The same for recipes that differ in the order only in which they name layers."""

    def settled(each: Pass) -> Pass:
        lists = {name: sorted(getattr(each, name)) for name in ("ratios", "keep") if hasattr(each, name)}
        return replace(each, **{name: tuple(found) for name, found in lists.items()})

    return recipe_key(tuple(settled(each) for each in recipe))


def _budget(each: Pass) -> str:
    return next((unit for unit in BUDGETS if getattr(each, unit, None) is not None), "")


def _around(now: float, step: float, lowest: float, highest: float) -> tuple[float, ...]:
    found = [now if k == 0 else round(now + k * step, 6) for k in range(-STEPS, STEPS + 1)]
    return tuple(each for each in found if each == now or lowest <= each <= highest)
