"""What each layer of a search's original bears by itself, as far as the search's time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from nncompress.benchmarking.latency.target import layer_clock
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.quantize.by_clock import TimedLayers, timed_layers
from nncompress.search.layers.sensitivity import METHODS, RECORD, Effect, Probe, probes, sensitivity
from nncompress.search.records import Records
from nncompress.search.trial import Bounds

SAMPLES = 128  # that passes are fitted to here, at most: which layer bears more than another shows on few


def wanted_probes(original: Model, bounds: Bounds, context: Context) -> list[Probe]:
    """What is worth measuring: of int8 where it serves the goal, of 4 bits for a size. Of every layer its
    middle strength before any other, the methods in turns: when time is over, some of each is known."""
    by_size = bounds.goal == "size"
    rounds = by_size or bounds.timed or bounds.size is not None
    methods = METHODS if rounds else METHODS[:2]
    found = probes(original, methods, context, include_head=False)  # as what is tried leaves it
    found = [probe for probe in found if probe.method != "quantize" or probe.strength == 8 or by_size]
    ladders: dict[tuple[str, str], list[Probe]] = {}
    for probe in found:
        ladders.setdefault((probe.method, probe.where), []).append(probe)
    rungs = [
        (abs(rung - (len(ladder) - 1) // 2), probe)
        for ladder in ladders.values()
        for rung, probe in enumerate(ladder)
    ]
    numbers: dict[tuple[int, str], count[int]] = {}
    order = {
        id(probe): (rung, next(numbers.setdefault((rung, probe.method), count()))) for rung, probe in rungs
    }
    return sorted(found, key=lambda probe: order[id(probe)])


def effects_alone(
    original: Model,
    wanted: Sequence[Probe],
    context: Context,
    bounds: Bounds,
    folder: Path,
    until: float,
    say: Callable[[str], None],
) -> tuple[Effect, ...]:
    """What each layer bears; where latency counts, also the time that fewer nodes and ranks save. Of int8
    that would mislead: one layer in int8 alone rounds and restores what its neighbours, in int8 too, hand
    on as it is (`clocked_layers` times it between these).

    Args:
        folder: where it is kept; another search of the same original measures none of it again.
        until: `time.monotonic()` from which on nothing is begun; what was not measured by then is said.
    """
    records = Records(folder, RECORD)
    rounded = [probe for probe in wanted if probe.method == "quantize"]
    others = [probe for probe in wanted if probe.method != "quantize"]
    target = bounds.target if bounds.timed else None
    few = replace(context, limit=min(context.limit or SAMPLES, SAMPLES))
    first = until if not others else min(until, time.monotonic() + (until - time.monotonic()) / 3)
    found = sensitivity(original, rounded, few, records, first).effects
    found += sensitivity(original, others, few, records, until, target=target).effects
    if missing := len(wanted) - len(found):
        say(
            f"of {len(wanted)} measurements of single layers {missing} were not made in a share of the time:"
            " where strengths differ layer by layer, layers without any keep theirs"
        )
    return found


def clocked_layers(
    original: Model, bounds: Bounds, context: Context, say: Callable[[str], None]
) -> TimedLayers | None:
    """The layers that could run in int8, timed in both precisions in the target; None, which is said, where
    single ones cannot be timed there."""
    try:
        where = layer_clock(bounds.target)
    except UsageError as error:
        say(f"which layers gain by int8 is not known beforehand: {error.what}")
        return None
    timed = timed_layers(original, where, context.progress)
    if slow := timed.slower():
        named = ", ".join(slow[:5]) + (", …" if slow[5:] else "")
        say(f"by themselves slower in int8 in {where.runtime_name}: {named}")
    return timed
