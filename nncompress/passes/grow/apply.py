"""What `grow` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

from dataclasses import replace

from nncompress.analysis.cost import cost
from nncompress.analysis.growth import Amount, Budget, Growth, Wish, grow_step, is_quantized, largest_within
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.benchmarking.latency.target import clocked
from nncompress.errors import UsageError, VerificationError
from nncompress.ir import Model
from nncompress.passes.base import Change, Context, need_data
from nncompress.passes.grow.options import AMOUNTS, DEFAULT_BY, Grow


def requires(options: Grow, model: Model, context: Context) -> None:
    where = Wish(Amount(), where=options.where).chosen(model, context.data)
    if where != "uniform":
        data = need_data(context, options.name, f"--where {where} looks at what the nodes do")
        if where == "gradient" and not data.has_labels:
            raise UsageError(
                "grow: --where gradient needs labels",
                got=f"{data.spec} has none",
                remedy="--where std needs none",
            )


def apply(options: Grow, model: Model, context: Context) -> list[Change]:
    if is_quantized(model):
        return [Change("model", "skipped: it is quantized, and new nodes need training", applied=False)]
    before = cost(model)
    budget = Budget(
        None if options.macs is None else options.macs * before.macs,
        None if options.params is None else options.params * before.parameters,
    )
    by = DEFAULT_BY if all(getattr(options, name) is None for name in AMOUNTS) else options.by
    amount = Amount(by, options.factor, options.quarter_of, options.round_to)
    if options.latency is not None:
        amount = Amount(factor=2.0, round_to=options.round_to)
    wished = Wish(
        amount,
        budget,
        where=options.where,
        groups=options.groups,
        init=options.init,
        exclude=options.exclude,
    )

    def step(scale: float) -> Growth:
        return grow_step(
            model,
            replace(wished, amount=replace(amount, scale=scale)),
            context.data,
            limit=context.limit,
            batch_size=context.batch_size,
            seed=context.seed,
            progress=context.progress,
        )

    if options.latency is None:
        grown = step(1.0)
    else:
        with ModelLatency(
            model,
            context.progress,
            clocked(context.target, context.ends_in),
            precision=context.ends_in,
            finish=context.finish,
        ) as latency:
            fit = largest_within(
                options.latency, lambda grown: latency.share(grown.model).value, step, open_ended=True
            )
        grown = step(fit.scale)
        where = latency.target.runtime_name
        context.notes.append(
            f"grow: {fit.share:.2f} times the latency of before, measured in {where}{context.ending}"
        )
    if not grown.scores:
        raise UsageError(
            "grow: no nodes can be added",
            got="every node is fixed" + (" or excluded" if options.exclude else ""),
            remedy="nncompress inspect --units shows why",
        )
    if not grown.added:
        context.notes.append("grow: nothing grew; a larger amount or budget is needed")
    _check_budget(budget, grown)
    model.graph_module, model.traced_form = grown.model.graph_module, grown.model.traced_form
    return _changes(grown)


def _check_budget(budget: Budget, grown: Growth) -> None:
    """The budget is kept, by the exact count of the grown model.

    Raises:
        VerificationError: it is exceeded.
    """
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
    return changes + [Change(name, f"skipped: {why}", applied=False) for name, why in grown.left.items()]
