"""What `prune-nodes` does: asks what it needs, edits the model, checks the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from nncompress.analysis.answer import answer_index, output_dims
from nncompress.analysis.compensation import Fitted, without_data
from nncompress.analysis.compensation.batch_norms import batch_norms, reestimate
from nncompress.analysis.compensation.held_out import fit_and_decide, output_error
from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings, fold_weights
from nncompress.analysis.curvature.losses import check_labels
from nncompress.analysis.importance import CRITERIA
from nncompress.benchmarking.latency.target import clocked
from nncompress.data import Dataset
from nncompress.errors import DataError, ModelFileError, UsageError
from nncompress.ir import Model
from nncompress.ir.graph.verify import spoiling
from nncompress.ir.layers.weights import layers
from nncompress.options import LossWeights, shares_of
from nncompress.passes.base import Change, Context, need_data
from nncompress.passes.cut import apply_cut, check_budget, proven_cut, refusal, refuse_16_bits, removals
from nncompress.passes.invariance.rotation.turn import PRINCIPAL
from nncompress.passes.invariance.rotation.whichever import turned_alike, with_rotation
from nncompress.passes.prune_nodes.compensated import compensated
from nncompress.passes.prune_nodes.contributions import group_contributions
from nncompress.passes.prune_nodes.latency_budget import by_latency
from nncompress.passes.prune_nodes.options import PruneNodes
from nncompress.passes.prune_nodes.plan import Amount, Plan, Ranked, ranked


def requires(options: PruneNodes, model: Model, context: Context) -> None:
    criterion = options.chosen(context)
    needs = CRITERIA[criterion].needs
    if needs:
        data = need_data(context, options.name, f"criterion {criterion} looks at activations")
        if needs == "labels" and not data.has_labels:
            raise UsageError(
                f"prune-nodes: criterion {criterion} needs labels",
                got=f"{data.spec} has none",
                remedy="--criterion reconstruction needs none",
            )
    if options.rotate:
        need_data(context, options.name, "--rotate finds the axes that it lies along")
    if options.drop_blocks:
        need_data(context, options.name, "--drop-blocks measures what each block contributes")
    broken = spoiling(model)
    if broken:
        raise ModelFileError(f"prune-nodes: {broken} has NaN or infinite values")
    fits = criterion == "reconstruction" or options.drop_blocks or options.compensate or options.renormalize
    if context.data is not None and fits:
        remedy = "prune the float32 model and convert the result; or leave out --data"
        refuse_16_bits(options.name, model, remedy)
    if context.data is not None and (needs or fits):
        _read(model, context, context.data, labels=needs == "labels")


def _read(model: Model, context: Context, data: Dataset, *, labels: bool) -> None:
    """Go through the samples once, so that one that does not fit stops the work before it begins.

    Raises:
        DataError: naming the sample, or what does not fit about the labels.
    """
    seen, planned = 0, data.planned_samples(context.limit)
    for batch in data.batches(context.batch_size, context.limit):
        context.progress.step("reading the data", seen, planned)
        if labels:
            if not seen:
                outputs = model.outputs_of(*batch.inputs)
                index = answer_index(model, data)
                dim = output_dims(model.outputs_of, batch, outputs)[index]
                first = outputs[index].detach().movedim(dim or 0, 0)
            check_labels(first[:1].expand(len(batch), *first.shape[1:]), batch.labels, data.spec)
        seen += len(batch)
    context.progress.step("reading the data", seen, planned)


def apply(options: PruneNodes, model: Model, context: Context) -> list[Change]:
    if options.rotate:
        parameters = cost(model).parameters

        def plainly(each: Model, own: Context) -> list[Change]:
            # --params is a share of the model that came in; one in other axes may hold a table twice
            share = None if options.params is None else options.params * parameters / cost(each).parameters
            return apply(replace(options, rotate=False, params=share), each, own)

        return with_rotation(options.name, PRINCIPAL, model, context, plainly)
    context.progress.step("finding what is tied together", 0, 1)
    fold_weights(model)  # a weight norm: what is scored, fitted and cut is the weight it makes
    couplings = find_couplings(model)
    ratios = shares_of(options.name, "ratios", options.ratios)
    ranks = ranked(
        model,
        couplings,
        context,
        options.chosen(context),
        separate=options.blocks == "separate",
        exclude=options.exclude,
        drop_blocks=options.drop_blocks,
        selects=options.selects,
        only=ratios,
    )
    amount = Amount(
        ratio=options.ratio,
        ratios=ratios,
        share_lost=options.share_lost,
        threshold=options.threshold,
        outliers=options.outliers,
        macs=options.macs,
        params=options.params,
        scope=options.scope,
        round_to=options.round_to,
        weights=_weights(options.loss_weight, options.scope, ranks),
    )
    reached: list[Change] = []
    if options.latency is None:
        plan = ranks.plan(amount)
    else:
        plan, reached = _within_latency(options.latency, amount, ranks, context)
    if not plan.cut:
        return []
    context.progress.step("removing nodes", 0, 1)
    cut, proven = proven_cut(couplings, plan.cut) if options.verify else (plan.cut, None)
    refused = refusal(options.name, proven.refused if proven else {}, len(plan.removed))
    if refused:
        context.notes.append(refused)
    fitted: Fitted = without_data(model, cut)
    batches: Sequence[tuple[Tensor, ...]] = []
    if cut and context.data is not None and (options.compensate or options.renormalize):
        batches = context.data.input_batches(context.batch_size, context.limit)
        if not batches:
            raise DataError(f"{context.data.spec} gave no samples")
    if batches and context.data is not None and options.compensate:
        fitted = compensated(
            options.name, model, couplings, cut, plan.branches, context.data, batches, context
        )
    pruned, proof = apply_cut(model, cut, fitted, proven, verify=options.verify)
    if batches and context.data is not None and not fitted.layers and batch_norms(pruned):
        fit, held = fit_and_decide(model, context.data, context.batch_size, context.limit)
        share, before, after = reestimate(pruned, fit, output_error(model, pruned.outputs_of, held))
        if share:
            context.notes.append(
                f"batch norms: {share:.0%} new statistics; squared error of the outputs, in their variances, "
                f"{before:.3g} -> {after:.3g}"
            )
    changes = reached + removals(plan.choices, plan.removed, plan.losses, proven, proof)
    changes += [Change(n, "residual block left out", {"loss": plan.losses[n]}) for n in plan.dropped]
    changes += [Change(n, f"skipped: {why}", applied=False) for n, why in fitted.left.items()]
    for unit, left in (("macs", options.macs), ("parameters", options.params)):
        if left is not None and not refused:
            check_budget(options.name, unit, left, model, pruned)
    if cut:
        model.graph_module, model.traced_form = pruned.graph_module, pruned.traced_form
    return changes


def _within_latency(
    share: float, amount: Amount, ranks: Ranked, context: Context
) -> tuple[Plan, list[Change]]:
    """What goes, and what was measured for that."""

    def cut(plan: Plan) -> Model:
        fitted = without_data(ranks.model, plan.cut)
        return apply_cut(ranks.model, plan.cut, fitted, None, verify=False)[0]

    plan, reached = by_latency(share, amount, ranks, cut, clocked(context.target, context.ends_in), context)
    return plan, [reached]


def _weights(said: tuple[str, ...], scope: str, ranks: Ranked) -> LossWeights | None:
    """What `--loss-weight` says.

    Raises:
        UsageError: it names no layer, or nodes do not compare between layers.
    """
    if not said:
        return None
    if not ranks.comparable and scope != "global":
        raise UsageError(
            "prune-nodes: --loss-weight needs nodes of different layers that compare",
            got="the same share goes from every group, by this criterion",
            remedy="--data, or --scope global",
        )
    weights = LossWeights("prune-nodes", said)
    names = [layer.name for layer in layers(ranks.model)]
    weights.check([*names, *(name for c in ranks.choices for name in c.names)])
    return weights


def contributions(
    options: PruneNodes,
    before: Model,
    after: Model,
    changes: list[Change],
    inputs: tuple[Tensor, ...],
    context: Context,
) -> dict[str, float]:
    reference = before
    if options.rotate:
        reference = before.copy()
        turned_alike(reference, changes, PRINCIPAL, context)
    return group_contributions(reference, changes, inputs)
