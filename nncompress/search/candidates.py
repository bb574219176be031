"""Which recipe to try next, given what was found: the same for every worker that has seen the same results.

A family of recipes has one number, the share of the model that it is to leave. The smallest share that holds
the bound is found by bisection, in all families side by side: the two passes by themselves, both uniformly,
both with strengths per layer, both chosen and repaired together by `reduce`, whole residual blocks left out
(what is left has the old shapes: every runtime gains from it in full); each in float and in int8, of which
the layers that bear it worst may stay in float; for a size in 4 bits too, and widths, ranks and bits of each
layer together. What is near the best of them is tried then (`neighbourhood`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

from nncompress.passes import Factorize, Pass, PruneNodes, Quantize, Reduce
from nncompress.passes.quantize.by_clock import TimedLayers
from nncompress.search.layers.by_time import ByTime
from nncompress.search.layers.sensitivity import Effect
from nncompress.search.layers.strengths import per_layer
from nncompress.search.records import key_of

SHARES = tuple(round(0.1 + 0.025 * i, 3) for i in range(36))  # 0.1 to 0.975
FOUR_BITS = Quantize(weight_bits=4)

Recipe = tuple[Pass, ...]
Verdict = Callable[[Recipe], "bool | None"]  # None: not tried yet


@dataclass(frozen=True)
class Family:
    """Recipes by the share that they leave."""

    name: str
    recipe: Callable[[float], Recipe]

    def recipes(self) -> Iterator[Recipe]:
        """Of every share; none that changes nothing."""
        return (recipe for share in SHARES if (recipe := self.recipe(share)))


def recipe_key(recipe: Recipe) -> str:
    """The name of a trial: the same for the same passes and settings."""
    return key_of([[each.name, each.settings()] for each in recipe])


def families(
    methods: Collection[str],
    effects: Sequence[Effect],
    unit: str,
    by_time: bool = False,
    timed: TimedLayers | None = None,
    blocks: int = 0,
) -> list[Family]:
    """Args:
    methods: passes by which some layer or group can be made smaller, and that serve the goal.
    effects: what single layers bear, as far as it is known: without any, no recipe differs layer by layer.
    unit: "macs" or "params": what the shares are of.
    timed: layers in both precisions, where these are chosen by time.
    by_time: strengths per layer are chosen by the time that they save, and leave shares of that.
    blocks: how many residual blocks could be left out.
    """
    counted = "time" if by_time else {"params": "parameters"}.get(unit, unit)

    def prune(share: float) -> Recipe:
        return (PruneNodes(**{unit: share}),)  # type: ignore[arg-type]

    def factorize(share: float) -> Recipe:
        return (Factorize(**{unit: share}),)  # type: ignore[arg-type]

    def both(share: float) -> Recipe:
        return prune(sqrt(share)) + factorize(sqrt(share))

    def reduce(share: float) -> Recipe:
        return (Reduce(**{unit: share}),)  # type: ignore[arg-type]

    def layered(share: float) -> Recipe:
        return by_ratios(per_layer(effects, share, counted))

    def without_blocks(share: float) -> Recipe:
        few = (1 - share) ** 2  # every block costs more than the one before: begun at a fifth of them
        return (PruneNodes(drop_blocks=max(round(few * blocks), 1)),)

    found = []
    if "prune-nodes" in methods:
        found.append(Family("prune-nodes", prune))
    if "factorize" in methods:
        found.append(Family("factorize", factorize))
    if len(found) == 2:
        found += [Family("prune-nodes and factorize", both), Family("reduce", reduce)]
    if any(e.method in ("prune-nodes", "factorize") and e.error is not None for e in effects):
        found.append(Family("per layer", layered))
    if blocks:
        found.append(Family("residual blocks left out", without_blocks))
    if "quantize" not in methods:
        return found
    bits, alone = Bits.of(effects), tuple(found)
    found.insert(0, Family("int8", lambda share: (Quantize(),)))  # mostly the best that one trial finds
    found += [Family(f"{f.name}, int8", _then(f, lambda recipe: (Quantize(),))) for f in alone]
    if unit == "params":
        found += [Family(f"{f.name}, 4 bits", _then(f, lambda recipe: (FOUR_BITS,))) for f in alone]
        found.append(Family("4 bits", lambda share: (FOUR_BITS,)))
    if len(bits.worst) > 1:
        found.append(Family("int8, the worst in float", lambda share: (Quantize(keep=bits.kept(share)),)))
        if any(each.name == "per layer" for each in found):
            quarter = _then(
                Family("per layer", layered), lambda recipe: (Quantize(keep=bits.kept(0.25, recipe)),)
            )
            found.append(Family("per layer, int8, the worst quarter in float", quarter))
    names = Bits(tuple(dict.fromkeys((*bits.worst, *(timed.names if timed is not None else ())))))
    if timed is not None and (slow := timed.slower()):
        faster = (Quantize(keep=names.patterns(slow)),)
        found.append(Family("int8 where that is faster", lambda share: faster))
        if any(each.name == "prune-nodes" for each in alone):
            name = "prune-nodes, int8 where that is faster"
            found.append(Family(name, lambda share: (*prune(share), *faster)))
    if timed is not None and bits.worst:
        precisions = ByTime(timed, [e for e in effects if e.method == Quantize.name])
        found.append(Family("int8 by time", _by_time(precisions, names)))
        if any(each.name == "per layer" for each in alone):
            found.append(Family("widths, ranks and int8 by time", _by_time(ByTime(timed, effects), names)))
    if unit == "params" and bits.worst:
        found.append(Family("widths, ranks and bits per layer", lambda share: bits.jointly(effects, share)))
    return found


def _then(family: Family, after: Callable[[Recipe], Recipe]) -> Callable[[float], Recipe]:
    def recipe(share: float) -> Recipe:
        first = family.recipe(share)
        return (*first, *after(first))

    return recipe


def _by_time(choices: ByTime, names: Bits) -> Callable[[float], Recipe]:
    def recipe(share: float) -> Recipe:
        choice = choices.choice(share)
        cut = by_ratios(choice.strengths)
        if len(choice.in_float) == len(choices.names):
            return cut
        return (*cut, Quantize(keep=names.patterns(sorted(choice.in_float), cut)))

    return recipe


def by_ratios(chosen: Mapping[str, Mapping[str, float]]) -> Recipe:
    """The passes that give layers and groups these strengths, by method."""
    kinds: tuple[type[PruneNodes] | type[Factorize], ...] = (PruneNodes, Factorize)
    return tuple(
        kind(ratios=tuple(f"{name}={strength:g}" for name, strength in chosen[kind.name].items()))
        for kind in kinds
        if chosen[kind.name]
    )


@dataclass(frozen=True)
class Bits:
    """Bits of each layer's weights.

    Attributes:
        worst: the layers by what rounding them to 8 bits costs per byte that it saves, the most first.
    """

    worst: tuple[str, ...]

    @classmethod
    def of(cls, effects: Sequence[Effect]) -> Bits:
        rounded = [e for e in effects if e.method == "quantize" and e.strength == 8 and e.error is not None]
        rounded.sort(key=lambda e: (-((e.error or 0.0) ** 2) / max(e.bytes, 1e-9), e.where))
        return cls(tuple(e.where for e in rounded))

    def kept(self, share: float, recipe: Recipe = ()) -> tuple[str, ...]:
        """Patterns of the worst layers, that share of all, at most all but one."""
        return self.patterns(self.worst[: min(round(share * len(self.worst)), len(self.worst) - 1)], recipe)

    def jointly(self, effects: Sequence[Effect], share: float) -> Recipe:
        """Widths, ranks and bits together, by error per byte; each layer has 32, 8 or 4 bits."""
        chosen = per_layer(effects, share, "bytes", ("prune-nodes", "factorize", "quantize"))
        recipe = by_ratios(chosen)
        return recipe + self.rounding(chosen["quantize"], recipe)

    def rounding(self, chosen: Mapping[str, float], recipe: Recipe) -> Recipe:
        """What follows `recipe` so that each layer has the bits chosen; those without any stay in float."""
        found: Recipe = ()
        for bits, wanted in ((4, {4}), (8, {4, 8})):
            others = [name for name in self.worst if chosen.get(name) not in wanted]
            if bits in chosen.values():
                found += (Quantize(weight_bits=bits, keep=self.patterns(others, recipe)),)
        return found

    def patterns(self, names: Sequence[str], recipe: Recipe = ()) -> tuple[str, ...]:
        """Of layers, and of the factors that `recipe` makes of them (`NAME.0`)."""
        factored = {
            pair.rpartition("=")[0] for each in recipe if isinstance(each, Factorize) for pair in each.ratios
        }
        found = []
        for name in names:
            alone = not any(other != name and other.startswith(name) for other in self.worst)
            found.append(f"{name}*" if alone else f"{name}.*" if name in factored else name)
        return tuple(found)


def untried(
    searched: Sequence[Family], verdict: Verdict, reached: Callable[[Recipe], float]
) -> list[tuple[float, Recipe]]:
    """The next recipe of every family that is not settled, and what the family has reached (−∞ where nothing
    is known of it): of those first that nothing is known of, then of those that have reached most, so that a
    short search ends where it is worth most.

    Args:
        reached: the goal of a recipe that was tried; infinite where it does not hold the bounds.
    """
    wanted: list[tuple[float, int, Recipe]] = []
    for family in searched:
        low, high = -1, len(SHARES)  # at low the bound is broken, at high held
        best = -inf
        while high - low > 1:
            middle = (low + high) // 2
            recipe = family.recipe(SHARES[middle])
            held = verdict(recipe) if recipe else False
            if held is None:
                wanted.append((best, low - high, recipe))
                break
            best = min(inf if best == -inf else best, reached(recipe) if recipe else inf)
            low, high = (low, middle) if held else (middle, high)
    found: dict[str, tuple[float, Recipe]] = {}
    for best, _, recipe in sorted(wanted, key=lambda each: each[:2]):
        found.setdefault(recipe_key(recipe), (best, recipe))
    return list(found.values())
