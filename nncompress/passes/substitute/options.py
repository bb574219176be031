"""`substitute`: cheaper operations in the place of K×K convolutions (Çallı 2017, §2.3).

Each starts from the trained weights by least squares; with data it is then fitted to what the layer computed.
The thesis trained such networks from scratch: on CIFAR-10 they did as well as convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Literal

from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.passes.base import BY_DEFAULT, Change, Context, Pass, option

if TYPE_CHECKING:
    from torch import Tensor, fx

    from nncompress.analysis.observe.statistics import ChannelStatistics, Inputs
    from nncompress.ir import Model
    from nncompress.passes.factorize.targets import Target
    from nncompress.passes.substitute.operations import Plan


RATIO = 0.5


@dataclass(frozen=True)
class Substitute(Pass):
    """Replace convolutions by separable, kernel-composing or stacked 3×3 ones where that multiplies less.

    The first convolution is left alone unless --layers names it. Train or distil afterwards: operations that
    were not trained rarely do what a convolution did, and where none of --relative, --layers and --macs is
    given, only those that do are put in. --relative 1 replaces all.
    """

    name = "substitute"
    summary = "cheaper operations instead of K×K convolutions"
    example = "nncompress substitute model.pt2 --with separable --relative 1 --data train.npz"
    protects = ""
    amounts = ("relative", "layers", "macs")
    more = "--macs 0.8, or --relative 1 for all, best with --data; then nncompress train"
    afterwards = (
        "Substitutes are a start for training: nncompress train, or replace fewer layers (--layers, --macs)."
    )

    with_: Literal["separable", "nonlinear-separable", "kernel-composing", "stacked-3x3"] = option(
        "separable",
        help="depthwise and 1×1, the same with batch norm and ReLU between, 1×K and K×1, or two or three 3×3",
    )
    relative: float | None = option(
        None,
        above=0,
        most=1,
        help=f"replace what loses at most this share of its weight's squares {BY_DEFAULT}",
    )
    layers: tuple[str, ...] = option(
        (), metavar="PATTERN", help="which layers, e.g. 'layer3*' (repeatable) [default: all but the first]"
    )
    macs: float | None = option(
        None,
        above=0,
        below=1,
        help="replace what saves most first, until the model keeps this share of its MACs",
    )
    channels: int | None = option(
        None, least=1, help="channels between 1×K and K×1, or between 3×3s [default: what --ratio allows]"
    )
    ratio: float | None = option(
        None, above=0, below=1, help="share of a layer's MACs that these two keep [default: 0.5]"
    )
    linear: bool = option(False, help="no activation between 1×K and K×1, or between 3×3s")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_several(("channels", "ratio"), "how many channels lie between")
        self.refuse_several(("relative", "macs"), "which layers are replaced")
        for name in ("channels", "ratio", "linear"):
            if name in self.settings() and "separable" in self.with_:
                raise UsageError(
                    f"substitute: --{name} goes with another operation",
                    got=f"--with {self.with_}",
                    expected="--with kernel-composing or stacked-3x3",
                    remedy=f"leave --{name} out",
                )

    def requires(self, model: Model, context: Context) -> None:
        from nncompress.ir.layers.weights import layers

        names = [layer.name for layer in layers(model)]
        for pattern in self.layers:
            if not any(fnmatch(name, pattern) for name in names):
                raise UsageError(
                    f"substitute: no layer is called {pattern}", remedy="nncompress inspect shows the layers"
                )
        for layer in layers(model):
            if "conv" in layer.kind and not layer.weight.value().isfinite().all():
                raise ModelFileError(f"substitute: the weight of {layer.name} has NaN or infinite values")

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.passes.substitute.insert import insert

        plans, left = self._plans(model, context)
        changes = [Change(name, f"left: {reason}", applied=False) for name, reason in left.items()]
        if not plans:
            return changes
        statistics = self._statistics(model, plans, context)
        original = model.copy() if context.data is not None else None
        stages: dict[Target, list[str]] = {}
        for done, plan in enumerate(plans):
            context.progress.step("substituting", done, len(plans))
            weights = plan.weights()
            changes.append(_change(plan))
            stages[plan.target] = insert(model, plan, weights, self.linear, statistics)
        context.progress.step("substituting", len(plans), len(plans))
        model.refresh()
        if original is not None:
            from nncompress.passes.factorize.repair import repair

            changes += repair(original, model, stages, context)
        return changes

    def ensures(self, model: Model, changes: list[Change]) -> None:
        for change in changes:
            if change.numbers.get("macs_after", 0) > change.numbers.get("macs_before", 0):
                raise VerificationError(f"substituting {change.where} did not reduce its MACs")

    def _plans(self, model: Model, context: Context) -> tuple[list[Plan], dict[str, str]]:
        """What is done, in graph order, and by layer name why the rest is left alone."""
        from nncompress.analysis.cost import cost
        from nncompress.ir.graph.shapes import Shapes
        from nncompress.passes.factorize.targets import find_targets
        from nncompress.passes.substitute.operations import plan

        shapes = Shapes(model)
        targets, left = find_targets(model, shapes)
        convolutions = [t for t in targets if not t.is_matrix]
        left = {name: reason for name, reason in left.items() if self._named(name)}
        if self.layers:
            left |= {t.name: "not a convolution" for t in targets if t.is_matrix and self._named(t.name)}
        elif not convolutions and not left:
            left["model"] = "it has no convolution with a stored weight"
        plans = []
        for number, target in enumerate(convolutions):
            if not any(self._named(layer.name) for layer in target.layers):
                continue
            if number == 0 and not self.layers:
                left[target.name] = "the first convolution"
                continue
            found = plan(target, self.with_, shapes, self.channels, self.ratio or RATIO, context.seed)
            if isinstance(found, str):
                left[target.name] = found
            elif found.macs >= target.macs:
                left[target.name] = "it would not multiply less"
            elif self.share_lost is not None and found.error > self.share_lost:
                left[target.name] = f"it would lose {found.error:.0%} of its weight"
            else:
                plans.append(found)
        if self.macs is None:
            return plans, left
        chosen, total = [], cost(model).macs
        budget, now = self.macs * total, total
        for each in sorted(plans, key=lambda p: p.macs - p.target.macs):
            if now > budget:
                chosen.append(each)
                now -= each.target.macs - each.macs
            else:
                left[each.target.name] = "the budget is met without it"
        return [each for each in plans if each in chosen], left

    def _named(self, name: str) -> bool:
        return not self.layers or any(fnmatch(name, pattern) for pattern in self.layers)

    def _statistics(self, model: Model, plans: list[Plan], context: Context) -> dict[str, ChannelStatistics]:
        """Of what the depthwise convolutions give, on the data, or on random inputs where there is none."""
        if self.with_ != "nonlinear-separable":
            return {}
        from nncompress.analysis.observe.statistics import ChannelStatistics, observe
        from nncompress.ir.layers.geometry import CONVOLUTIONS

        found: dict[str, ChannelStatistics] = {}
        watches: dict[fx.Node, list] = {}
        for plan in plans:
            depthwise = plan.weights()[0].to(plan.target.weight.value().dtype)
            place = plan.chain[0][0]
            for layer in plan.target.layers:
                seen = found[layer.name] = ChannelStatistics(dim=1)

                def take(
                    value: Tensor, w: Tensor = depthwise, place=place, seen: ChannelStatistics = seen
                ) -> None:
                    convolve = CONVOLUTIONS[place.dims]
                    args = (list(place.stride), list(place.padding), list(place.dilation), place.groups)
                    seen.add(convolve(value, w, None, *args))

                watches.setdefault(layer.data, []).append(take)
        if context.data is None:
            context.notes.append("statistics of random inputs went into the batch norms: better give --data")
            batches: Sequence[Inputs] = [model.example_inputs(batch=8, seed=context.seed)]
        else:
            batches = context.data.input_batches(context.batch_size, context.limit)
        observe(model, batches, watches, progress=context.progress, total=context.limit)
        return found


def _change(plan: Plan) -> Change:
    target = plan.target
    numbers = {
        "macs_before": target.macs,
        "macs_after": plan.macs,
        "parameters_before": target.weight.value().numel(),
        "parameters_after": plan.parameters,
        "relative_error": plan.error,
    }
    what = f"{plan.operation}: {target.macs / plan.macs:.1f}x fewer MACs, {plan.error:.0%} of the weight lost"
    return Change(target.name, what, numbers)
