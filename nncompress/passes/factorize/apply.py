"""What `factorize` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nncompress.analysis.cost import Cost, cost
from nncompress.analysis.lowrank.ranks import Candidate
from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.weight_targets import Target, find_targets
from nncompress.benchmarking.latency.target import layer_clock
from nncompress.errors import ModelFileError, UnsupportedError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.edit.recurrent.inputs import inputs_as_layers
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.other_products import AS_LAYER, other_products, stacks_left
from nncompress.ir.layers.recurrent import recurrent_layers, with_recurrent_matrices
from nncompress.ir.layers.weights import layers
from nncompress.options import LossWeights, shares_of
from nncompress.passes.base import Change, Context, need_data
from nncompress.passes.factorize.calibrate import CalibrationStatistics, random_tokens
from nncompress.passes.factorize.candidates import option_of
from nncompress.passes.factorize.choose import NAMES, Choice, Option, describe
from nncompress.passes.factorize.latency import LatencyOracle
from nncompress.passes.factorize.latency_budget import by_latency, confirm
from nncompress.passes.factorize.options import Factorize
from nncompress.passes.factorize.rule import RankRule
from nncompress.passes.factors.forms.base import Form
from nncompress.passes.factors.replace import replace_layer
from nncompress.passes.repair import repair

UNTIMED = "a recurrent layer's product of its input is not timed by itself: another budget, as --macs"
IN_THE_LOOP = "factors cannot stand within a fused layer's steps: prune-nodes takes units, quantize bits"
SPECTRUM = 32  # ranks of one layer whose error is recorded, and the chosen one


def requires(options: Factorize, model: Model, context: Context) -> None:
    if options.faster or options.latency is not None:
        layer_clock(context.target, context.ends_in)
    found = with_recurrent_matrices(model)
    if not found:
        others = other_products(model)
        raise UsageError(
            "factorize: no layer to factorize",
            got="no convolution, linear or recurrent layer, or product with a stored matrix"
            + (f"; {others}" if others else ""),
            remedy=AS_LAYER if others else "nncompress inspect shows the layers",
        )
    for layer in found:
        if not layer.weight.finite:
            raise ModelFileError(f"factorize: the weight of {layer.name} has NaN or infinite values")
    if options.minimize in ("layer", "model"):
        need_data(context, f"factorize --minimize {options.minimize}", "it measures what the layers compute")


def apply(options: Factorize, model: Model, context: Context) -> list[Change]:
    before = cost(model)
    recurrent = [layer.name for layer in recurrent_layers(model)]
    timed = options.faster or options.latency is not None
    with inputs_as_layers(model, ["*"] if timed else options.exclude) as kept:
        kept = dict.fromkeys(kept, UNTIMED) if timed else kept
        shapes = Shapes(model)
        targets, left = find_targets(model, shapes, options.exclude)
        ratios = shares_of(options.name, "ratios", options.ratios)
        if ratios:
            targets, left = _named(ratios, targets, left)
        elif options.ratio is not None:
            ratios = {target.name: options.ratio for target in targets}
        rule = RankRule(ratios=ratios, **options.asked)
        context.notes.extend(stacks_left(model))
        if not targets and all(layer.weight.quantized for layer in layers(model)):
            context.notes.append(
                "factorize left the model as it was: all its weights are quantized already, and factors are "
                "floats. Factorize the float model, then quantize."
            )
        left |= {**kept, **{f"{name}.weight_hh": IN_THE_LOOP for name in recurrent if name not in kept}}
        changes = [Change(name, f"skipped: {reason}", applied=False) for name, reason in left.items()]
        statistics, minimized = _calibrate(model, targets, options.minimize, rule, context)
        oracle = None
        if options.faster or options.latency is not None:
            oracle = LatencyOracle(shapes, layer_clock(context.target, context.ends_in), context.ends_in)
        per_layer = []
        for done, target in enumerate(targets):
            context.progress.step("decomposing" if oracle is None else "timing", done, len(targets))
            per_layer.append(
                option_of(
                    target,
                    shapes,
                    rule,
                    form=options.forms,
                    round_to=options.round_to,
                    statistics=statistics,
                    minimized=minimized,
                    oracle=oracle,
                )
            )
        context.progress.step("decomposing", len(targets), len(targets))
        weights = LossWeights(options.name, options.loss_weight)
        weights.check(layer.name for layer in layers(model))
        per_layer = [replace(each, weight=weights.of([each.target.name])) for each in per_layer]
        steps = sorted({each.multiple for each in per_layer if each.timings} - {1})
        if oracle is not None and steps and options.rank is None:
            which = " or ".join(map(str, steps))
            context.notes.append(
                f"ranks are multiples of {which}, the steps of latency in {oracle.where.runtime_name}"
            )
        if oracle is not None and oracle.unkept:
            context.notes.append(f"the layers' latencies are measured anew each time: {oracle.unkept}")
        choices, reached = _choose(
            model, before, per_layer, rule, minimized, oracle, options.exclude, context
        )
        if not any(choice.candidate for choice in choices):
            return changes + [_change(choice, minimized) for choice in choices]
        changes += reached
        original = model.copy() if context.data is not None and options.refit else None
        chosen = [choice for choice in choices if choice.candidate is not None]
        factors = []
        for done, choice in enumerate(chosen):  # all of them before the first layer changes
            context.progress.step("factorizing", done, len(chosen))
            factors.append(_factors(choice, statistics))
        context.progress.step("factorizing", len(chosen), len(chosen))
        if statistics is not None and context.data is not None:
            context.warn(too_few(options.name, statistics.rows([choice.option.target for choice in chosen])))
        stages = {choice.option.target: replace_layer(model, *made) for choice, made in zip(chosen, factors)}
        changes += [_change(choice, minimized) for choice in choices]
        del statistics, per_layer, choices, chosen, factors  # statistics and decompositions
        model.refresh()
        if original is not None:
            changes += repair(original, model, stages, context)
        return changes


def factors_of(
    model: Model,
    target: Target,
    shapes: Shapes,
    rule: RankRule,
    form: str,
    round_to: int,
    statistics: CalibrationStatistics,
) -> tuple[Change, list[Tensor], Tensor | None]:
    """What becomes of one layer by itself, with the error of what it computes: its factors, if it gets any,
    and the bias that then goes with them."""
    option = option_of(
        target,
        shapes,
        rule,
        form=form,
        round_to=round_to,
        statistics=statistics,
        minimized="layer",
        oracle=None,
    )
    (choice,) = rule.choices(None, [option], "layer")
    if choice.candidate is None:
        return _change(choice, "layer"), [], None
    _, weights, bias = _factors(choice, statistics)
    return _change(choice, "layer"), weights, bias


def _named(
    shares: Mapping[str, float], targets: list[Target], left: dict[str, str]
) -> tuple[list[Target], dict[str, str]]:
    """The layers that `--ratios` names, and why each other one is skipped.

    Raises:
        UsageError: a name is not that of a layer that can be factorized: the user meant it to be.
    """
    known = [target.name for target in targets]
    for name in shares:
        if name not in known:
            raise UsageError(
                f"factorize: --ratios {name} names no layer that can be factorized",
                got=left.get(name, ""),
                expected=", ".join(known[:5]) + (", …" if known[5:] else ""),
                remedy="nncompress inspect shows the layers",
            )
    others = {name: "not named in --ratios" for name in known if name not in shares}
    return [target for target in targets if target.name in shares], {**left, **others}


def _calibrate(
    model: Model, targets: list[Target], minimize: str, rule: RankRule, context: Context
) -> tuple[CalibrationStatistics | None, str]:
    """What the data says, and whose error it says it of ("weight", "layer" or "model")."""
    minimized, data = minimize, context.data
    if minimize == "auto":
        if data is None and rule.of_the_model:
            data = random_tokens(model, context)
        minimized = "model" if rule.err is None else "weight"
    if minimized == "weight" or data is None:
        return None, "weight"
    try:
        return CalibrationStatistics(model, targets, data, context, outputs=minimized == "model"), minimized
    except UnsupportedError as error:
        if minimize == "model":
            raise
        context.notes.append(f"{error.what}: minimised the error of each layer's own output")
        return CalibrationStatistics(model, targets, data, context, outputs=False), "layer"


def _choose(
    model: Model,
    before: Cost,
    per_layer: list[Option],
    rule: RankRule,
    minimized: str,
    oracle: LatencyOracle | None,
    exclude: tuple[str, ...],
    context: Context,
) -> tuple[list[Choice], list[Change]]:
    """A choice per option, and what is to be said of the model as a whole."""
    if oracle is None or rule.latency is None:
        choices = rule.choices(before, per_layer, minimized)
        return (choices if oracle is None else confirm(choices, oracle)), []
    timed = [option for option in per_layer if option.timings]
    choices, reached = by_latency(model, timed, rule.latency, minimized == "model", oracle, exclude, context)
    return choices + [Choice(o, None, o.nothing) for o in per_layer if not o.timings], [reached]


def _factors(
    choice: Choice, statistics: CalibrationStatistics | None
) -> tuple[Form, list[Tensor], Tensor | None]:
    """The form, its stages' weights, and the bias that takes up the mean of their error."""
    assert choice.candidate is not None
    target = choice.option.target
    form = choice.option.forms[choice.candidate.form]
    weights = form.weights(choice.candidate.ranks)
    known = statistics.of(target) if statistics is not None else None
    if known is None or known.mean is None:
        return form, weights, None
    error = target.matrices(target.weight.value().to(torch.float64) - form.compose(weights))
    bias = (error @ known.mean[:, :, None]).flatten().to(form.weight.dtype)
    present = target.layers[0].bias
    return form, weights, bias if present is None else bias + present.value()


def _change(choice: Choice, minimized: str) -> Change:
    option, candidate = choice.option, choice.candidate
    counted = "parameters" if option.unit == "parameters" else "macs"
    before = option.target.weight.value().numel() if counted == "parameters" else option.target.macs
    numbers: dict[str, object] = {f"{counted}_before": before}
    if candidate is None:
        return Change(option.target.name, f"skipped: {choice.reason}", numbers, applied=False)
    after = option.forms[candidate.form].cost(candidate.ranks, counted)
    lost = candidate.error / option.total if option.total else 0.0
    numbers |= {
        f"{counted}_after": after,
        "form": candidate.form,
        "rank": candidate.ranks[0] if len(candidate.ranks) == 1 else list(candidate.ranks),
        "minimized": minimized,
        "relative_error": lost,
        "spectrum": _spectrum(option, candidate),
    }
    what = f"{candidate.form}: {describe(option, candidate)}, loses {lost:.2%}"
    what += f", {NAMES[counted]} ×{after / before:.2f}"
    if choice.measured is not None:
        measured = choice.measured
        numbers |= {
            "latency_us_before": round(measured.dense * 1e6, 1),
            "latency_us_after": round(measured.factored * 1e6, 1),
            "latency_share_predicted": round(option.share(candidate), 3),
            "latency_share_measured": round(measured.share, 3),
        }
        what += f", time ×{measured.share:.2f}"
    if minimized != "model":
        numbers["mse"] = candidate.error / option.elements
    return Change(option.target.name, what, numbers)


def _spectrum(option: Option, candidate: Candidate) -> list[tuple[int, float]]:
    """Rank and share lost there, ascending, the chosen one among them; of two ranks, the second as chosen."""
    errors = option.forms[candidate.form].squared_errors()
    along = sorted(ranks for ranks in errors if ranks[1:] == candidate.ranks[1:])
    step = max(1, -(-len(along) // SPECTRUM))
    kept = sorted({*along[::step], *along[-1:], *({candidate.ranks} & errors.keys())})
    return [(ranks[0], errors[ranks] / option.total if option.total else 0.0) for ranks in kept]


def ensures(options: Factorize, model: Model, changes: list[Change]) -> None:
    for change in changes:
        for unit in ("macs", "parameters"):
            before, after = change.numbers.get(f"{unit}_before"), change.numbers.get(f"{unit}_after")
            if before is not None and after is not None and after >= before:
                raise VerificationError(f"factorizing {change.where} did not reduce its {unit}")
