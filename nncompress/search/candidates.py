"""Which recipe to try next, given what was found: the same for every worker that has seen the same results.

A family of recipes has one number, the share of the model that it is to leave. The smallest share that holds
the bound is found by bisection, in all families side by side: the two passes by themselves, both uniformly,
both with strengths per layer; each in float and in int8. Then strengths of the best recipe are varied one by
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from nncompress.passes import Factorize, Pass, PruneNodes, Quantize
from nncompress.search.records import key_of
from nncompress.search.sensitivity import Effect, per_layer

SHARES = tuple(round(0.1 + 0.025 * i, 3) for i in range(36))  # 0.1 to 0.975
VARIED = 0.05  # by how much a strength is varied

Recipe = tuple[Pass, ...]
Verdict = Callable[[Recipe], "bool | None"]  # None: not tried yet


@dataclass(frozen=True)
class Family:
    """Recipes by the share that they leave."""

    name: str
    recipe: Callable[[float], Recipe]


def recipe_key(recipe: Recipe) -> str:
    """The name of a trial: the same for the same passes and settings."""
    return key_of([[each.name, each.settings()] for each in recipe])


def families(effects: Sequence[Effect], unit: str, quantizes: bool) -> list[Family]:
    """Args:
    unit: "macs" or "params": what the shares are of.
    quantizes: some layer can be.
    """

    def prune(share: float) -> Recipe:
        return (PruneNodes(**{unit: share}),)  # type: ignore[arg-type]

    def factorize(share: float) -> Recipe:
        return (Factorize(**{unit: share}),)  # type: ignore[arg-type]

    def both(share: float) -> Recipe:
        return prune(sqrt(share)) + factorize(sqrt(share))

    def layered(share: float) -> Recipe:
        ratios = per_layer(effects, share, {"params": "parameters"}.get(unit, unit))
        kinds: tuple[type[PruneNodes] | type[Factorize], ...] = (PruneNodes, Factorize)
        return tuple(
            kind(ratios=tuple(f"{name}={strength:g}" for name, strength in found.items()))
            for kind, found in zip(kinds, ratios)
            if found
        )

    found = []
    if any(e.method == "prune-nodes" and e.error is not None for e in effects):
        found.append(Family("prune-nodes", prune))
    if any(e.method == "factorize" and e.error is not None for e in effects):
        found.append(Family("factorize", factorize))
    if len(found) == 2:
        found.append(Family("prune-nodes and factorize", both))
    if found:
        found.append(Family("per layer", layered))
    if quantizes:
        found += [Family(f"{f.name}, int8", _then_quantized(f)) for f in found]
        found.append(Family("int8", lambda share: (Quantize(),)))
    return found


def _then_quantized(family: Family) -> Callable[[float], Recipe]:
    return lambda share: (*family.recipe(share), Quantize())


def untried(searched: Sequence[Family], verdict: Verdict) -> list[Recipe]:
    """The next recipe of every family that is not settled, those first of which least is known."""
    wanted: list[tuple[int, Recipe]] = []
    for family in searched:
        low, high = -1, len(SHARES)  # at low the bound is broken, at high held
        while high - low > 1:
            middle = (low + high) // 2
            recipe = family.recipe(SHARES[middle])
            held = verdict(recipe) if recipe else False
            if held is None:
                wanted.append((low - high, recipe))
                break
            low, high = (low, middle) if held else (middle, high)
    found = {recipe_key(recipe): recipe for _, recipe in sorted(wanted, key=lambda each: each[0])}
    return list(found.values())


def varied(recipe: Recipe, effects: Sequence[Effect]) -> Iterator[Recipe]:
    """The recipe with one strength more: of the layers first of which it costs least, by the effects."""
    prices: Mapping[tuple[str, str], float] = {
        (e.method, e.where): (e.error or 0.0) ** 2 / max(e.macs, 1e-6) for e in effects if e.error is not None
    }
    moves = []
    for position, each in enumerate(recipe):
        if not isinstance(each, PruneNodes | Factorize) or not each.ratios:
            continue
        more = VARIED if isinstance(each, PruneNodes) else -VARIED
        for index, pair in enumerate(each.ratios):
            name, _, text = pair.rpartition("=")
            strength = float(text) + more
            if not 0 < strength < 1:
                continue
            ratios = (*each.ratios[:index], f"{name}={strength:g}", *each.ratios[index + 1 :])
            changed = (*recipe[:position], type(each)(ratios=ratios), *recipe[position + 1 :])
            moves.append((prices.get((each.name, name), 0.0), position, index, changed))
    for *_, changed in sorted(moves, key=lambda move: move[:3]):
        yield changed
