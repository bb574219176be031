"""Widths for a latency: a share of the MACs is asked for, the result measured, and the share corrected.

Latency over width is a staircase whose steps are the kernel's: widths end a step, as measured in the target.
How long the layers take together no table of single ones tells: each try is a whole model, exported for where
it will run and timed in turns with the original. The nodes are ranked once, and what is measured is not
fitted to data: weights do not change what a width costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import lcm

from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.benchmarking.latency.steps import Steps
from nncompress.benchmarking.latency.table import LatencyTable
from nncompress.benchmarking.latency.target import floats_in, layer_clock
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.passes.base import Change, Context
from nncompress.passes.prune_nodes.plan import Amount, Plan, Ranked
from nncompress.results import Estimate
from nncompress.targets import Target

TRIES = 6
TOLERANCE = 0.02  # of the latency asked for: as close as the clocks of a quiet machine allow
LEAST = 0.01  # share of the MACs
STEP = 8  # channels, where single layers cannot be timed: kernels of today's CPUs work on blocks of 8 or 16


def by_latency(
    share: float,
    amount: Amount,
    ranks: Ranked,
    cut: Callable[[Plan], Model],
    where: Target,
    context: Context,
) -> tuple[Plan, Change]:
    """The most nodes with which the model takes no more than `share` of its time.

    Args:
        amount: how nodes are compared and rounded.
        cut: the model without what a plan removes.

    Returns: the plan, and what was measured.

    Raises:
        UsageError: out of reach; says what is within.
    """
    multiple, step = _multiple(amount.round_to, ranks, where, context)
    tried: list[tuple[float, Plan, Estimate]] = []
    with ModelLatency(
        ranks.model, context.progress, where, precision=context.ends_in, finish=context.finish
    ) as clock:
        before = clock.seconds()
        slow, fast = (
            1.0,
            0.0,
        )  # shares of the MACs: too slow at the one, not at the other
        asked = share
        for done in range(TRIES):
            context.progress.step(f"choosing by latency in {where.runtime_name}", done, TRIES)
            try:
                plan = ranks.plan(replace(amount, macs=asked, round_to=multiple))
            except UsageError:  # fewer MACs than can be left
                if slow - asked <= LEAST:
                    break
                fast = max(fast, asked)
                asked = (slow + fast) / 2
                continue
            measured = clock.share(cut(plan))
            tried.append((asked, plan, measured))
            if abs(measured.value - share) <= TOLERANCE * share:
                break
            if measured.value > share:
                slow = min(slow, asked)
            else:
                fast = max(fast, asked)
            guess = _on_the_line([(1.0, 1.0), *((m, each.value) for m, _, each in tried)], share)
            asked = guess if fast < guess < slow else (slow + fast) / 2
        context.progress.step(f"choosing by latency in {where.runtime_name}", TRIES, TRIES)
    within = [each for each in tried if each[2].value <= share * (1 + TOLERANCE)]
    if not within:
        least = min((each[2].value for each in tried), default=1.0)
        raise UsageError(
            f"prune-nodes cannot reach {100 * share:.4g}% of the model's latency",
            got=f"{least:.1%} measured in {where.runtime_name}, the least of {len(tried)} tries",
            expected=f"at least {least:.1%}",
            remedy="ask for less, or quantize",
        )
    macs, plan, measured = max(within, key=lambda each: each[0])
    numbers = {
        "target": where.name,
        "latency_ms_before": before * 1e3,
        "latency_share_measured": round(measured.value, 4),
        "interval": [round(measured.low, 4), round(measured.high, 4)],
        "macs_asked": round(macs, 4),
        "tries": len(tried),
        "multiples_of": multiple,
    }
    what = f"{measured.value:.1%} of {before * 1e3:.3g} ms measured in {where.runtime_name}{context.ending}"
    return plan, Change("latency", f"{what}; widths in multiples of {multiple}{step}", numbers)


def _multiple(round_to: int, ranks: Ranked, where: Target, context: Context) -> tuple[int, str]:
    """What widths are multiples of, and why, behind that number."""
    members = (member for choice in ranks.choices for member in choice.members)
    written = {member.tensor for member in members if member.role == "output"}
    cut = [layer for layer in layers(ranks.model) if layer.weight.name in written]
    try:
        table = LatencyTable(layer_clock(where.name))
    except UsageError as error:
        return lcm(round_to, STEP), f" ({error.what})"
    ends_in = context.ends_in
    precision = "int8" if ends_in == "int8" else floats_in(where, ends_in) or ""
    step = Steps(table, precision).of(cut)
    return lcm(round_to, step), f", the steps of its kernels' latency{' with --round-to' * (round_to > step)}"


def _on_the_line(seen: Sequence[tuple[float, float]], share: float) -> float:
    """The share of the MACs at which a line through the two measurements nearest to it takes `share`."""
    (m, t), (n, u) = sorted(seen, key=lambda point: abs(point[1] - share))[:2]
    return m if t == u else m + (share - t) * (n - m) / (u - t)
