"""`factorize`: replace a layer by two or three smaller ones of lower rank.

The rank follows in closed form from the singular values of the layer's weight, and a layer is replaced only
where its factors multiply less than it did (the papers' eq. 2.1, n < m_in·m_out / (m_in + m_out), for
whatever form the factors take). Depthwise convolutions have no rank to lower and are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.passes.base import Change, Context, Pass, option

if TYPE_CHECKING:
    from nncompress.ir import Model
    from nncompress.passes.lowrank.targets import Target


@dataclass(frozen=True)
class Factorize(Pass):
    """Low-rank factors instead of layers."""

    name = "factorize"
    summary = "replace layers by low-rank factors where that multiplies less"
    example = "nncompress factorize model.pt2 --err 1e-3"

    err: float = option(
        1e-3, above=0, help="largest mean squared error between a weight and its low-rank version"
    )
    form: Literal["auto", "channel", "spatial"] = option(
        "auto",
        help="factors of a convolution: K×K then 1×1, K×1 then 1×K, or the cheapest that meets the error",
    )
    round_to: int = option(1, least=1, help="ranks are multiples of this; 16 suits most CPUs")
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to leave alone, e.g. 'head*' (repeatable)"
    )

    def requires(self, model: Model, context: Context) -> None:
        from nncompress.ir.weights import layers

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

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.ir.shapes import Shapes
        from nncompress.passes.lowrank.targets import find_targets

        shapes = Shapes(model)
        targets, left = find_targets(model, shapes, self.exclude)
        changes = [Change(name, f"left: {reason}", applied=False) for name, reason in left.items()]
        for done, target in enumerate(targets):
            context.progress.step("factorizing", done, len(targets))
            changes.append(self._factorize(model, target, shapes))
        context.progress.step("factorizing", len(targets), len(targets))
        if any(change.applied for change in changes):
            model.refresh()
        return changes

    def _factorize(self, model: Model, target: Target, shapes: object) -> Change:
        from nncompress.analysis.ranks import cheapest
        from nncompress.passes.lowrank.forms import forms_of
        from nncompress.passes.lowrank.replace import replace_layer

        unit, dense = ("macs", target.macs) if target.macs else ("parameters", target.weight.value().numel())
        forms = forms_of(target, shapes, self.form)  # type: ignore[arg-type]
        if not forms:
            return Change(target.name, "left: its padding is not symmetric", applied=False)
        elements = target.weight.value().numel()
        candidates = [c for form in forms for c in form.candidates(unit, self.round_to)]
        best = cheapest(candidates, self.err * elements)
        full = {form.name: form.largest_rank() for form in forms}
        numbers = {f"{unit}_before": dense}
        if best is None or best.cost >= dense:
            needed = f"rank {best.ranks[0]} of {full[best.form]}" if best else "its full rank"
            what = f"left: error {self.err:g} needs {needed}, which does not reduce its {unit}"
            return Change(target.name, what, numbers, applied=False)
        form = next(f for f in forms if f.name == best.form)
        replace_layer(model, form, form.weights(best.ranks))
        return Change(
            target.name,
            f"{best.form}: rank {best.ranks[0]} of {full[best.form]}",
            {**numbers, f"{unit}_after": best.cost, "rank": best.ranks[0], "mse": best.error / elements},
        )

    def ensures(self, model: Model, changes: list[Change]) -> None:
        for change in changes:
            if not change.applied:
                continue
            for unit in ("macs", "parameters"):
                before, after = change.numbers.get(f"{unit}_before"), change.numbers.get(f"{unit}_after")
                if before is not None and after is not None and after >= before:
                    raise VerificationError(f"factorizing {change.where} did not reduce its {unit}")
