"""`grow`: add nodes (channels, hidden units, attention heads), the reverse of `prune-nodes`.

The same couplings say which tensors a node touches, for any architecture. The grown model computes what it
computed before: that is checked on the model at hand, and that a gradient reaches the new nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from nncompress.errors import UsageError, VerificationError
from nncompress.passes.base import Change, Context, Pass, need_data, option

if TYPE_CHECKING:
    from nncompress.analysis.growth import Budget, Growth, Wish
    from nncompress.ir import Model

DEFAULT_BY = 16
AMOUNTS = ("by", "factor", "quarter_of", "macs", "params", "latency")


@dataclass(frozen=True)
class Grow(Pass):
    """Every new node gets its place in all tensors that its group touches; training it is the next step."""

    name = "grow"
    summary = "add nodes (channels, heads, hidden units) without changing what the model computes"
    example = "nncompress grow model.pt2 --by 16 --where auto --data images/"
    stored_weights = False

    by: int | None = option(
        None, least=1, help=f"add so many nodes to every group, on average [default: {DEFAULT_BY}]"
    )
    factor: float | None = option(None, above=1, help="multiply the number of nodes by this")
    quarter_of: int | None = option(
        None, least=4, metavar="N", help="add a quarter of N nodes, up to N in all"
    )
    macs: float | None = option(None, above=1, help="grow to this multiple of the MACs")
    params: float | None = option(None, above=1, help="grow to this multiple of the parameters")
    latency: float | None = option(
        None, above=1, help="grow to this multiple of the latency, measured in --target"
    )
    where: Literal["auto", "std", "gradient", "uniform"] = option(
        "auto",
        help="which groups get most: by spread of activations, by gradient of candidate nodes;"
        " auto: gradient with labels that fit, std with data, else uniform",
    )
    groups: int | None = option(None, least=1, help="only so many groups, those in most need [default: all]")
    init: Literal["auto", "he", "xavier", "split"] = option(
        "auto",
        help="new nodes: silent, with random inputs of that scale (auto: He before a rectifier);"
        " or copies that share their original's outputs",
    )
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers that get no nodes, e.g. 'head*' (repeatable)"
    )
    round_to: int = option(1, least=1, help="add multiples of this many nodes")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_several(AMOUNTS, "how many nodes come")

    @property
    def wish(self) -> Wish:
        """The step without its budget, which is a multiple of what the model costs."""
        from nncompress.analysis.growth import Amount, Wish

        by = DEFAULT_BY if all(getattr(self, n) is None for n in AMOUNTS) else self.by
        amount = Amount(by, self.factor, self.quarter_of, self.round_to)
        return Wish(amount, where=self.where, groups=self.groups, init=self.init, exclude=self.exclude)

    def requires(self, model: Model, context: Context) -> None:
        where = self.wish.chosen(model, context.data)
        if where != "uniform":
            data = need_data(context, self.name, f"--where {where} looks at what the nodes do")
            if where == "gradient" and not data.has_labels:
                raise UsageError(
                    "grow: --where gradient needs labels",
                    got=f"{data.spec} has none",
                    remedy="--where std needs none",
                )

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.analysis.cost import cost
        from nncompress.analysis.growth import Amount, Budget, grow_step, is_quantized, largest_within
        from nncompress.bench.model_latency import ModelLatency
        from nncompress.bench.target_speed import clocked

        if is_quantized(model):
            return [Change("model", "left: it is quantized, and new nodes need training", applied=False)]
        before = cost(model)
        budget = Budget(
            None if self.macs is None else self.macs * before.macs,
            None if self.params is None else self.params * before.parameters,
        )

        wish = replace(self.wish, budget=budget)
        if self.latency is not None:
            wish = replace(wish, amount=Amount(factor=2.0, round_to=self.round_to))

        def step(scale: float) -> Growth:
            return grow_step(
                model,
                replace(wish, amount=replace(wish.amount, scale=scale)),
                context.data,
                limit=context.limit,
                batch_size=context.batch_size,
                seed=context.seed,
                progress=context.progress,
            )

        if self.latency is None:
            grown = step(1.0)
        else:
            with ModelLatency(model, context.progress, clocked(context.target)) as latency:
                fit = largest_within(
                    self.latency, lambda grown: latency.share(grown.model).value, step, open_ended=True
                )
            grown = step(fit.scale)
            where = latency.target.runtime_name
            context.notes.append(f"grow: {fit.share:.2f} times the latency of before, measured in {where}")
        if not grown.scores:
            raise UsageError(
                "grow: no nodes can be added",
                got="every node is fixed" + (" or excluded" if self.exclude else ""),
                remedy="nncompress inspect --units shows why",
            )
        if not grown.added:
            context.notes.append("grow: nothing grew; a larger amount or budget is needed")
        self._check_budget(budget, grown)
        model.graph_module = grown.model.graph_module
        return _changes(grown)

    def _check_budget(self, budget: Budget, grown: Growth) -> None:
        """The budget is kept, by the exact count of the grown model.

        Raises:
            VerificationError: it is exceeded.
        """
        from nncompress.analysis.cost import cost

        after = cost(grown.model)
        for name, bound, got in (
            ("MACs", budget.macs, after.macs),
            ("parameters", budget.params, after.parameters),
        ):
            if bound is not None and got > bound:
                raise VerificationError(
                    f"grow: the budget of {name} was missed",
                    got=f"{got:,}",
                    expected=f"at most {bound:,.0f}",
                    remedy="this is a defect: please report the model's architecture",
                )


def _changes(grown: Growth) -> list[Change]:
    changes = []
    for name, units in grown.added.items():
        before = grown.sizes[name]
        what = f"{before} -> {before + units} nodes" + (", copies" if name in grown.copies else "")
        numbers = {"nodes_before": before, "added": units, "need": grown.scores[name], "error": grown.error}
        changes.append(Change(name, what, numbers))
    return changes + [Change(name, f"left: {why}", applied=False) for name, why in grown.left.items()]
