"""Ranks for a latency: predicted from single layers, then measured on the whole model, and corrected.

A model's latency is predicted as what it takes today less what its layers save, each timed by itself.
Layers that follow each other may take more or less (what one has left in the cache, what the runtime fuses),
so the prediction is checked: the model with these ranks is exported and timed against the original, in turns,
and what it is off by goes into the next choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nncompress.analysis.weight_targets import find_targets
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.passes.base import Change, Context
from nncompress.passes.factorize.choose import Choice, Option, by_budget
from nncompress.passes.factorize.latency import LatencyOracle, Timing
from nncompress.passes.factors.forms.choice import forms_of
from nncompress.passes.factors.replace import replace_layer
from nncompress.results import Estimate

TRIES = 4
TOLERANCE = 0.02  # of the budget: as close as the clocks of a quiet machine allow
FAR = 0.06  # of the budget: a result that misses it by more is not what was asked for


def by_latency(
    model: Model,
    options: Sequence[Option],
    share: float,
    comparable: bool,
    oracle: LatencyOracle,
    exclude: tuple[str, ...],
    context: Context,
) -> tuple[list[Choice], Change]:
    """The ranks that lose least in all, with the model at no more than `share` of its latency.

    Args:
        comparable: as in `by_budget`.
        exclude: patterns of layers that are no targets.

    Returns: a choice per option, and what the model's latency was predicted and measured to become.

    Raises:
        UsageError: out of reach; says what is within.
    """
    found: list[tuple[list[Choice], float, Estimate]] = []
    with ModelLatency(
        model, context.progress, oracle.where, precision=context.ends_in, finish=context.finish
    ) as latency:
        before = latency.seconds()
        asked = share
        for done in range(TRIES):
            context.progress.step("choosing by latency", done, TRIES)
            try:
                choices, options = _confirmed(round(before * 1e9), options, asked, comparable, oracle)
            except UsageError:
                if found:  # the correction asks for more than there is
                    break
                raise
            measured = latency.share(_factored(model, choices, exclude))
            found.append((choices, 1 - _saved(choices) / before, measured))
            if abs(measured.value - share) <= TOLERANCE * share:
                break
            asked = min(max(asked + share - measured.value, 0.01), 1.0)
        context.progress.step("choosing by latency", TRIES, TRIES)
    within = [each for each in found if each[2].value <= share * (1 + TOLERANCE)]
    best = max(within, key=lambda f: f[2].value) if within else min(found, key=lambda f: f[2].value)
    choices, predicted, measured = best
    if measured.value > share * (1 + FAR):
        raise UsageError(
            f"factorize cannot reach {100 * share:.4g}% of the model's latency",
            got=f"{measured.value:.1%} measured in {oracle.where.runtime_name}, {predicted:.1%} predicted",
            expected=f"at least {measured.value:.1%}",
            remedy="ask for less, or prune nodes first",
        )
    if not within:
        context.notes.append(
            f"The model takes {measured.value:.1%} of its time, not {share:.0%}: {len(found)} tries came no "
            "closer, for lack of ranks to choose from or of a quiet machine to measure on."
        )
    numbers = {
        "latency_ms_before": before * 1e3,
        "latency_share_predicted": round(predicted, 4),
        "latency_share_measured": round(measured.value, 4),
        "interval": [round(measured.low, 4), round(measured.high, 4)],
    }
    what = (
        f"{measured.value:.1%} of {before * 1e3:.3g} ms measured{context.ending}, {predicted:.1%} predicted"
    )
    return choices, Change("latency", what, numbers)


def confirm(choices: Sequence[Choice], oracle: LatencyOracle) -> list[Choice]:
    """What was chosen, timed again, as the fastest of many timings is too good to be true."""
    confirmed = []
    for choice in choices:
        option, candidate = choice.option, choice.candidate
        if candidate is None:
            confirmed.append(choice)
            continue
        timing = oracle.again(option.target, option.forms[candidate.form], candidate.ranks)
        if timing.share < 1:
            confirmed.append(replace(choice, measured=timing))
        else:
            reason = f"timed again, {candidate.form} took {timing.share:.2f} of its time"
            confirmed.append(Choice(option, None, reason))
    return confirmed


def _confirmed(
    before: int, options: Sequence[Option], share: float, comparable: bool, oracle: LatencyOracle
) -> tuple[list[Choice], list[Option]]:
    """Choices of which none is slower than its layer, and the options without those that were."""
    options = list(options)
    while True:
        choices = by_budget(before, options, share, "latency", comparable)
        confirmed = confirm(choices, oracle)
        refused = [a.candidate is not None and b.candidate is None for a, b in zip(choices, confirmed)]
        if not any(refused):
            return confirmed, options
        for i, choice in enumerate(choices):
            if refused[i]:
                left = [c for c in options[i].candidates if c is not choice.candidate]
                options[i] = replace(options[i], candidates=left)


def _saved(choices: Sequence[Choice]) -> float:
    """Seconds, going by the layers' timings."""
    timings: list[Timing] = []
    for choice in choices:
        if choice.candidate is not None and choice.option.timings is not None:
            timings.append(choice.option.timings[choice.candidate.form, choice.candidate.ranks])
    return sum(timing.dense - timing.factored for timing in timings)


def _factored(model: Model, choices: Sequence[Choice], exclude: tuple[str, ...]) -> Model:
    """A copy of the model with these factors."""
    small = model.copy()
    shapes = Shapes(small)
    targets = {target.name: target for target in find_targets(small, shapes, exclude)[0]}
    for choice in choices:
        if choice.candidate is not None:
            form = forms_of(targets[choice.option.target.name], shapes, choice.candidate.form)[0]
            weights = choice.option.forms[choice.candidate.form].weights(choice.candidate.ranks)
            replace_layer(small, form, [weight.clone() for weight in weights])
    small.refresh()
    return small
