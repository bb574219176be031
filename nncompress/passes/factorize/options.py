"""`factorize`: replace a layer by two or three smaller ones of lower rank.

The ranks follow in closed form from one decomposition per layer, and a layer is replaced only where its
factors multiply less than it did (the papers' eq. 2.1, n < m_in·m_out / (m_in + m_out), for whatever form the
factors take). Depthwise convolutions have no rank to lower and are never touched.

From the weights alone, the error of the weights is minimised. With data, it is the error of what the layers,
or the whole model, compute; then the factors are fitted to what the compressed layers before them produce.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import lcm
from typing import TYPE_CHECKING, Literal

from nncompress.errors import ModelFileError, UnsupportedError, UsageError, VerificationError
from nncompress.options import shares_of
from nncompress.passes.base import BY_DEFAULT, Change, Context, Pass, need_data, option

if TYPE_CHECKING:
    from torch import Tensor

    from nncompress.ir import Model
    from nncompress.passes.factorize.choose import Choice, Option
    from nncompress.passes.factorize.evidence import Evidences
    from nncompress.passes.factorize.forms import Form
    from nncompress.passes.factorize.latency import LatencyOracle
    from nncompress.passes.factorize.targets import Target

SELECTORS = ("err", "relative", "energy", "rank", "ratio", "ratios", "macs", "params", "latency")


@dataclass(frozen=True)
class Factorize(Pass):
    """Low-rank factors instead of layers.

    One of `SELECTORS` decides the ranks.
    """

    name = "factorize"
    summary = "replace layers by low-rank factors where that multiplies less"
    example = "nncompress factorize model.pt2 --macs 0.5 --data train.npz"
    amounts = SELECTORS
    more = "--macs 0.7, best with --data"

    err: float | None = option(
        None,
        above=0,
        help="mean squared error allowed per layer, of its weight (the papers' rule, 1e-3 there): what that "
        "does to a network depends on the size of its weights",
    )
    relative: float | None = option(
        None,
        above=0,
        below=1,
        help=f"squared error allowed per layer, as a share of what it could lose {BY_DEFAULT}",
    )
    energy: float | None = option(None, above=0, below=1, help="share of the squared singular values to keep")
    rank: int | None = option(None, least=1, help="the same rank for every layer")
    ratio: float | None = option(None, above=0, below=1, help="share of its own MACs that every layer keeps")
    ratios: tuple[str, ...] = option(
        (),
        metavar="LAYER=SHARE",
        help="share of its own MACs that one layer keeps; layers not named stay (repeatable)",
    )
    macs: float | None = option(
        None, above=0, below=1, help="share of its MACs that the model keeps, at the least error in all"
    )
    params: float | None = option(
        None, above=0, below=1, help="share of its parameters that the model keeps, at the least error in all"
    )
    latency: float | None = option(
        None,
        above=0,
        below=1,
        help="share of its latency that the model keeps, in --target on this machine (one thread, one "
        "record), at the least error in all",
    )
    form: Literal["auto", "channel", "spatial", "tucker"] = option(
        "auto",
        help="factors of a convolution: K×K then 1×1, K×1 then 1×K, 1×1 then K×K then 1×1, or the best",
    )
    minimize: Literal["auto", "weight", "layer", "model"] = option(
        "auto",
        help="whose error: the weight's, or with data that of the layer's or the model's output; auto: the "
        "weight's without data or for --err, else the model's",
    )
    refit: bool = option(True, help="with data, fit the factors to what the compressed layers produce")
    faster: bool = option(
        False, help="take only factors measured to be faster than the layer, in --target on this machine"
    )
    round_to: int = option(1, least=1, help="ranks are multiples of this; 16 suits most CPUs")
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to leave alone, e.g. 'head*' (repeatable)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        shares_of(self.name, "ratios", self.ratios)
        given = [name for name in SELECTORS if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise UsageError(
                "factorize: give one way to choose the ranks", got=" and ".join(f"--{name}" for name in given)
            )

    def requires(self, model: Model, context: Context) -> None:
        from nncompress.ir.layers.weights import layers

        found = list(layers(model))
        if not found:
            raise UsageError(
                "factorize: no layer to factorize",
                got="no convolution, linear layer or stored matrix",
                remedy="nncompress inspect shows the layers",
            )
        for layer in found:
            if not layer.weight.value().isfinite().all():
                raise ModelFileError(f"factorize: the weight of {layer.name} has NaN or infinite values")
        if self.minimize in ("layer", "model"):
            need_data(context, f"factorize --minimize {self.minimize}", "it measures what the layers compute")

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.analysis.observe.enough import too_few
        from nncompress.bench.target_speed import layer_clock
        from nncompress.ir.graph.shapes import Shapes
        from nncompress.ir.layers.weights import layers
        from nncompress.passes.factorize.latency import LatencyOracle
        from nncompress.passes.factorize.repair import repair
        from nncompress.passes.factorize.replace import replace_layer
        from nncompress.passes.factorize.targets import find_targets

        shapes = Shapes(model)
        targets, left = find_targets(model, shapes, self.exclude)
        if self.ratios:
            targets, left = self._named(targets, left)
        if not targets and all(layer.weight.quantized for layer in layers(model)):
            context.notes.append(
                "factorize left the model as it was: all its weights are quantized already, and factors are "
                "floats. Factorize the float model, then quantize."
            )
        changes = [Change(name, f"left: {reason}", applied=False) for name, reason in left.items()]
        evidence, whose = self._evidence(model, targets, context)
        oracle = None
        if self.faster or self.latency is not None:
            oracle = LatencyOracle(shapes, layer_clock(context.target))
        options = []
        for done, target in enumerate(targets):
            context.progress.step("decomposing" if oracle is None else "timing", done, len(targets))
            options.append(self._option(target, shapes, evidence, whose, oracle))
        context.progress.step("decomposing", len(targets), len(targets))
        if oracle is not None and oracle.unkept:
            context.notes.append(f"the layers' latencies are measured anew each time: {oracle.unkept}")
        choices, reached = self._choose(model, options, whose, oracle, context)
        if not any(choice.candidate for choice in choices):
            return changes + [self._change(choice, whose) for choice in choices]
        changes += reached
        original = model.copy() if context.data is not None and self.refit else None
        chosen = [choice for choice in choices if choice.candidate is not None]
        factors = []
        for done, choice in enumerate(chosen):  # all of them before the first layer changes
            context.progress.step("factorizing", done, len(chosen))
            factors.append(self._factors(choice, evidence))
        context.progress.step("factorizing", len(chosen), len(chosen))
        if evidence is not None:
            context.warn(too_few(self.name, evidence.rows([choice.option.target for choice in chosen])))
        stages = {choice.option.target: replace_layer(model, *made) for choice, made in zip(chosen, factors)}
        changes += [self._change(choice, whose) for choice in choices]
        del evidence, options, choices, chosen, factors  # statistics and decompositions
        model.refresh()
        if original is not None:
            changes += repair(original, model, stages, context)
        return changes

    def _named(self, targets: list[Target], left: dict[str, str]) -> tuple[list[Target], dict[str, str]]:
        """The layers that `--ratios` names, and why each other one is left alone.

        Raises:
            UsageError: a name is not that of a layer that can be factorized: the user meant it to be.
        """
        shares = shares_of(self.name, "ratios", self.ratios)
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

    def _evidence(
        self, model: Model, targets: list[Target], context: Context
    ) -> tuple[Evidences | None, str]:
        """What is minimised ("weight", "layer" or "model") and what the data says about it."""
        from nncompress.passes.factorize.evidence import Evidences

        whose = self.minimize
        if whose == "auto":
            whose = "weight" if context.data is None or self.err is not None else "model"
        if whose == "weight" or context.data is None:
            return None, "weight"
        try:
            return Evidences(model, targets, context.data, context, outputs=whose == "model"), whose
        except UnsupportedError as error:
            if self.minimize == "model":
                raise
            context.notes.append(f"{error.what}: minimised the error of each layer's own output")
            return Evidences(model, targets, context.data, context, outputs=False), "layer"

    def _option(
        self,
        target: Target,
        shapes: object,
        evidence: Evidences | None,
        whose: str,
        oracle: LatencyOracle | None,
    ) -> Option:
        from nncompress.analysis.curvature.metric import Metric
        from nncompress.analysis.lowrank.randomized import Wanted
        from nncompress.passes.factorize.choose import Option
        from nncompress.passes.factorize.forms import forms_of
        from nncompress.passes.factorize.latency import STEPS

        weight = target.weight.value()
        unit = self._unit(target)
        name = "channel" if self.rank is not None and self.form == "auto" else self.form
        said = evidence.of(target) if evidence is not None else None
        metrics = partial(evidence.metrics, target) if evidence is not None and said is not None else None
        matrices = target.matrices(weight)
        each = said.metrics if said is not None else [Metric()] * len(matrices)
        total = sum(m.energy(w) for m, w in zip(each, matrices))
        elements = weight.numel() if whose == "weight" else matrices.shape[0] * matrices.shape[1]
        wanted = Wanted(
            self.rank, self._limit(total, elements, whose), lcm(self.round_to, STEPS[0] if oracle else 1)
        )
        forms = {f.name: f for f in forms_of(target, shapes, name, metrics, wanted)}  # type: ignore[arg-type]
        if evidence is not None and evidence.passes > 1:  # the statistics of all layers would not fit
            for form in forms.values():
                form.keeps_parts = False
        dense = target.macs if unit == "macs" else weight.numel()
        if oracle is None:
            candidates = [c for f in forms.values() for c in f.candidates(unit, self.round_to)]
            return Option(target, forms, candidates, unit, dense, total, elements)
        timings = oracle.timings(target, forms, self.round_to, self.rank)
        known = {(c.form, c.ranks): c for f in forms.values() for c in f.candidates(unit)}
        timings = {place: timing for place, timing in timings.items() if place in known}
        if unit == "latency":
            dense = round(next((t.dense for t in timings.values()), 0.0) * 1e9)
            known |= {p: replace(known[p], cost=round(t.factored * 1e9)) for p, t in timings.items()}
        faster, slower = ([known[p] for p, t in timings.items() if t.pays == pays] for pays in (True, False))
        return Option(target, forms, faster, unit, dense, total, elements, timings, slower)

    def _unit(self, target: Target) -> str:
        """What is saved, and decides between ranks that are good enough."""
        if self.params is not None or not target.macs:
            return "parameters"
        by_error = self.err is not None or self._share is not None
        return "latency" if self.latency is not None or (self.faster and by_error) else "macs"

    def _choose(
        self,
        model: Model,
        options: list[Option],
        whose: str,
        oracle: LatencyOracle | None,
        context: Context,
    ) -> tuple[list[Choice], list[Change]]:
        """A choice per option, and what is to be said of the model as a whole."""
        from nncompress.passes.factorize.choose import Choice
        from nncompress.passes.factorize.latency_budget import by_latency, confirm

        if self.latency is not None:
            assert oracle is not None
            timed = [o for o in options if o.timings]
            choices, reached = by_latency(
                model, timed, self.latency, whose == "model", oracle, self.exclude, context
            )
            untimed = [Choice(o, None, o.nothing) for o in options if not o.timings]
            return choices + untimed, [reached]
        choices = self._by_cost_or_error(model, options, whose)
        return (choices if oracle is None else confirm(choices, oracle)), []

    def _by_cost_or_error(self, model: Model, options: list[Option], whose: str) -> list[Choice]:
        from nncompress.analysis.cost import cost
        from nncompress.passes.factorize import choose

        if self.macs is not None:
            return choose.by_cost(cost(model), options, self.macs, "macs", whose == "model")
        if self.params is not None:
            return choose.by_cost(cost(model), options, self.params, "parameters", whose == "model")
        if self.rank is not None:
            return [choose.by_rank(o, self.rank) for o in options]
        if self.ratio is not None:
            return [choose.by_ratio(o, self.ratio) for o in options]
        if self.ratios:
            shares = shares_of(self.name, "ratios", self.ratios)
            return [choose.by_ratio(o, shares[o.target.name]) for o in options]
        told = f"error {self.err:g}" if self.err is not None else f"relative error {self._share:.3g}"
        limits = [self._limit(o.total, o.elements, whose) or 0.0 for o in options]
        return [choose.by_error(o, limit, told) for o, limit in zip(options, limits)]

    @property
    def _share(self) -> float | None:
        """Of its total error, what a layer may lose."""
        return 1 - self.energy if self.energy is not None else self.share_lost

    def _limit(self, total: float, elements: int, whose: str) -> float | None:
        """The squared error that a layer must stay below; None where something else decides."""
        if self.err is not None:
            return self.err * (1 if whose == "model" else elements)
        return None if self._share is None else self._share * total

    def _factors(
        self, choice: Choice, evidence: Evidences | None
    ) -> tuple[Form, list[Tensor], Tensor | None]:
        """The form, its stages' weights, and the bias that takes up the mean of their error."""
        import torch

        assert choice.candidate is not None
        target = choice.option.target
        form = choice.option.forms[choice.candidate.form]
        weights = form.weights(choice.candidate.ranks)
        known = evidence.of(target) if evidence is not None else None
        if known is None or known.mean is None:
            return form, weights, None
        error = target.matrices(target.weight.value().to(torch.float64) - form.compose(weights))
        bias = (error @ known.mean[:, :, None]).flatten().to(form.weight.dtype)
        present = target.layers[0].bias
        return form, weights, bias if present is None else bias + present.value()

    def _change(self, choice: Choice, whose: str) -> Change:
        from nncompress.passes.factorize.choose import NAMES, describe

        option, candidate = choice.option, choice.candidate
        counted = "parameters" if option.unit == "parameters" else "macs"
        before = option.target.weight.value().numel() if counted == "parameters" else option.target.macs
        numbers: dict[str, object] = {f"{counted}_before": before}
        if candidate is None:
            return Change(option.target.name, f"left: {choice.reason}", numbers, applied=False)
        after = option.forms[candidate.form].cost(candidate.ranks, counted)
        lost = candidate.error / option.total if option.total else 0.0
        numbers |= {
            f"{counted}_after": after,
            "form": candidate.form,
            "rank": candidate.ranks[0] if len(candidate.ranks) == 1 else list(candidate.ranks),
            "minimized": whose,
            "relative_error": lost,
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
        if whose != "model":
            numbers["mse"] = candidate.error / option.elements
        return Change(option.target.name, what, numbers)

    def ensures(self, model: Model, changes: list[Change]) -> None:
        for change in changes:
            for unit in ("macs", "parameters"):
                before, after = change.numbers.get(f"{unit}_before"), change.numbers.get(f"{unit}_after")
                if before is not None and after is not None and after >= before:
                    raise VerificationError(f"factorizing {change.where} did not reduce its {unit}")
