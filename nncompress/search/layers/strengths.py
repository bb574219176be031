"""Strengths per layer, one step after the other by the error that each costs for what it saves."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from nncompress.search.layers.sensitivity import Effect


def gain(effect: Effect, unit: str) -> float:
    """What an effect saves, as a share of the whole model's.

    Args:
        unit: "macs", "bytes" or "parameters"; "time": as it was measured, and nothing where that may be noise
            (its interval holds 0) or was not measured.
    """
    if unit != "time":
        saved: float = getattr(effect, unit)
        return saved
    return effect.time.value if effect.time is not None and effect.time.low > 0 else 0.0


def per_layer(
    effects: Sequence[Effect],
    share: float,
    unit: str = "macs",
    methods: Sequence[str] = ("prune-nodes", "factorize"),
) -> dict[str, dict[str, float]]:
    """Which strengths together leave about `share` of the model, at the least error by these effects.

    Squared errors of different layers add up, nearly. What one method saves in different layers adds up; what
    different methods leave is multiplied, as if each were spread evenly: the trial itself counts. One step
    after the other is taken that costs least error per saved MAC (byte, second).

    Args:
        unit: of `gain`.

    Returns: per method, strengths by layer or group.
    """
    ladders: dict[tuple[str, str], list[Effect]] = {}
    for effect in effects:
        if effect.method in methods and effect.error is not None:
            ladders.setdefault((effect.method, effect.where), []).append(effect)
    for ladder in ladders.values():
        ladder.sort(key=lambda e: gain(e, unit))
    taken: dict[tuple[str, str], Effect] = {}
    saved = dict.fromkeys(methods, 0.0)
    while prod(1 - each for each in saved.values()) > share:
        steps = []
        for place, ladder in ladders.items():
            now = taken.get(place)
            cost, had = (0.0, 0.0) if now is None else ((now.error or 0.0) ** 2, gain(now, unit))
            for effect in ladder:
                more = gain(effect, unit) - had
                if more > 0:
                    price = max((effect.error or 0.0) ** 2 - cost, 0.0) / more
                    steps.append((price, -more, place, effect))
        if not steps:
            break
        _, less, place, effect = min(steps, key=lambda step: step[:3])
        taken[place] = effect
        saved[place[0]] -= less
    chosen: dict[str, dict[str, float]] = {method: {} for method in methods}
    for (method, where), effect in taken.items():
        chosen[method][where] = effect.strength
    return chosen
