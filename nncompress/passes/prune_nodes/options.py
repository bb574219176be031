"""`prune-nodes`: remove whole nodes (channels, hidden units, attention heads) and everything tied to them.

Which indices stand or fall together is found by `nncompress.analysis.couplings`, for any architecture. The
result is smaller in every runtime, needs no special kernels and computes exactly what the original computes
with the removed nodes' consumer weights at zero: that is checked on the model at hand (`--verify`). With
data, the layers that stay are fitted to what the original computed, in closed form (`--compensate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nncompress.errors import DataError, ModelFileError, UsageError, VerificationError
from nncompress.extensions import offered
from nncompress.options import shares_of
from nncompress.passes.base import BY_DEFAULT, Change, Context, Pass, need_data, option

if TYPE_CHECKING:
    from torch import Tensor

    from nncompress.analysis.compensation import Fitted
    from nncompress.analysis.couplings import Couplings
    from nncompress.data import Dataset
    from nncompress.ir import Model
    from nncompress.passes.prune_nodes.plan import Plan, Ranked

BUDGET_TOLERANCE = 0.02
# each says how many nodes go
SIZES = ("relative", "ratio", "ratios", "macs", "params", "latency", "threshold", "outliers")
CRITERIA = (  # of nncompress.analysis.importance
    *("reconstruction", "l1", "l2", "activation-count", "activation-variance"),
    *("taylor", "fisher", "obd", "random"),
)


def criteria() -> tuple[str, ...]:
    """What `--criterion` takes: ours, and those that other packages add."""
    return ("auto", *dict.fromkeys((*CRITERIA, *offered("nncompress.criteria"))))


@dataclass(frozen=True)
class PruneNodes(Pass):
    """Remove the nodes that matter least, by their worth, ratio, threshold, outlier bounds or budget."""

    name = "prune-nodes"
    summary = "remove whole nodes (channels, heads, hidden units) with everything tied to them"
    example = "nncompress prune-nodes model.pt2 --macs 0.5 --data images/"
    recurrent = True
    stored_weights = False
    amounts = (*SIZES, "drop_blocks")
    more = "--macs 0.7, or --ratio 0.1, best with --data"
    afterwards = "Train or distil the result (nncompress train), or remove less."

    relative: float | None = option(
        None,
        above=0,
        below=1,
        help=f"remove what is worth this share of every group, by the criterion {BY_DEFAULT}",
    )
    ratio: float | None = option(None, least=0, below=1, help="remove this share of every group's nodes")
    ratios: tuple[str, ...] = option(
        (),
        metavar="GROUP=SHARE",
        help="remove this share of one group's nodes, and nothing of groups not named (repeatable)",
    )
    macs: float | None = option(None, above=0, below=1, help="leave this share of the MACs")
    params: float | None = option(None, above=0, below=1, help="leave this share of the parameters")
    latency: float | None = option(
        None,
        above=0,
        below=1,
        help="leave this share of the latency, in --target on this machine (one thread, one record); "
        "widths are multiples of 8",
    )
    threshold: float | None = option(None, help="remove nodes that score below this")
    outliers: float | None = option(
        None, above=0, help="remove nodes whose score is outside mean ± K · variance of their group's"
    )
    criterion: str = option(
        "auto",
        choices=criteria,
        help="what makes a node unimportant; auto: reconstruction with data, else l2",
    )
    scope: Literal["auto", "group", "global"] = option(
        "auto",
        help="compare nodes within their group or everywhere; auto: everywhere for budgets, if they compare",
    )
    blocks: Literal["grouped", "separate"] = option(
        "grouped",
        help="residual streams: prune channels everywhere at once, or let each block read and write some",
    )
    drop_blocks: int = option(
        0, least=0, metavar="N", help="leave out the N residual blocks that contribute least"
    )
    compensate: bool = option(
        True, help="with data: fit the layers that stay to the original, in closed form"
    )
    renormalize: bool = option(
        True, help="with data, not compensated: re-estimate batch norms as far as that helps"
    )
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers whose nodes stay, e.g. 'head*' (repeatable)"
    )
    round_to: int = option(1, least=1, help="leave a multiple of this many nodes where a group has that many")
    verify: bool = option(True, help="prove the result against the original with zeroed consumers")

    def __post_init__(self) -> None:
        super().__post_init__()
        shares_of(self.name, "ratios", self.ratios)
        given = [f"--{n}" for n in SIZES if self._has(n)]
        if len(given) > 1:
            raise UsageError(
                "prune-nodes: these options each say how many nodes go",
                got=" and ".join(given),
                expected="one of them",
            )

        if self.share_lost is not None and self.scope == "global":
            raise UsageError(
                "prune-nodes: --relative is a share of each group",
                got="--scope global",
                remedy="leave --scope out, or say how many nodes go: --ratio 0.1",
            )

    def _has(self, name: str) -> bool:
        return getattr(self, name) not in (None, ())

    @property
    def selects(self) -> bool:
        """Nodes are to be removed, not whole blocks only."""
        sized = any(self._has(n) for n in SIZES)
        return sized or not self.drop_blocks

    def chosen(self, context: Context) -> str:
        """The criterion, "auto" resolved."""
        if self.criterion != "auto":
            return self.criterion
        return "l2" if context.data is None else "reconstruction"

    def requires(self, model: Model, context: Context) -> None:
        from nncompress.analysis.importance import CRITERIA
        from nncompress.ir.graph.verify import not_finite

        criterion = self.chosen(context)
        needs = CRITERIA[criterion].needs
        if needs:
            data = need_data(context, self.name, f"criterion {criterion} looks at activations")
            if needs == "labels" and not data.has_labels:
                raise UsageError(
                    f"prune-nodes: criterion {criterion} needs labels",
                    got=f"{data.spec} has none",
                    remedy="--criterion reconstruction needs none",
                )
        if self.drop_blocks:
            need_data(context, self.name, "--drop-blocks measures what each block contributes")
        broken = not_finite(model)
        if broken:
            raise ModelFileError(f"prune-nodes: {broken} has NaN or infinite values")
        fits = criterion == "reconstruction" or self.drop_blocks or self.compensate or self.renormalize
        if context.data is not None and fits:
            self._refuse_16_bits(model)
        if context.data is not None and (needs or fits):
            self._read(model, context, context.data, labels=needs == "labels")

    @staticmethod
    def _refuse_16_bits(model: Model) -> None:
        for name, value in model.graph_module.named_parameters():
            if value.dtype.itemsize == 2:
                raise UsageError(
                    "prune-nodes: fitting layers to data needs more precision than 16 bits",
                    got=f"{name} is {str(value.dtype).removeprefix('torch.')}",
                    expected="float32",
                    remedy="prune the float32 model and convert the result; or leave out --data",
                )

    def _read(self, model: Model, context: Context, data: Dataset, *, labels: bool) -> None:
        """Go through the records once, so that one that does not fit stops the work before it begins.

        Raises:
            DataError: naming the record, or what does not fit about the labels.
        """
        from nncompress.analysis.answer import answer_index, output_dims
        from nncompress.analysis.importance.taps import check_labels

        seen, planned = 0, data.planned_records(context.limit)
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

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.analysis.compensation import compensate, renormalize, without_data
        from nncompress.analysis.couplings import find_couplings, fold_weights
        from nncompress.analysis.observe.enough import too_few
        from nncompress.passes.prune_nodes.carry_out import carry_out, proven_cut
        from nncompress.passes.prune_nodes.plan import ranked

        context.progress.step("finding what is tied together", 0, 1)
        fold_weights(model)  # a weight norm: what is scored, fitted and cut is the weight it makes
        couplings = find_couplings(model)
        plan, reached = self._planned(ranked(self, model, couplings, context), couplings, context)
        if not plan.cut:
            return []
        context.progress.step("removing nodes", 0, 1)
        cut, proven = proven_cut(couplings, plan.cut) if self.verify else (plan.cut, None)
        refused = proven.refused if proven else {}
        if refused:
            context.notes.append(
                f"prune-nodes: {len(refused)} of {len(plan.removed)} groups stay whole, because their removal"
                " could not be proven. That is a defect of nncompress: please report the architecture."
            )
        fitted: Fitted = without_data(model, cut)
        batches: Sequence[tuple[Tensor, ...]] = []
        if cut and context.data is not None and (self.compensate or self.renormalize):
            batches = context.data.input_batches(context.batch_size, context.limit)
            if not batches:
                raise DataError(f"{context.data.spec} gave no records")
        if batches and self.compensate:
            settings = {"seed": context.seed, "progress": context.progress}
            fitted = compensate(model, couplings, cut, plan.branches, batches, **settings)  # type: ignore[arg-type]
            context.warn(too_few(self.name, fitted.layers))
        pruned, proof = carry_out(model, cut, fitted, proven, verify=self.verify)
        if batches and not fitted.layers:
            blend, before, after = renormalize(pruned, model, batches)
            if blend:
                context.notes.append(
                    f"batch norms: {blend:.0%} of the statistics re-estimated on data; relative squared "
                    f"error of the outputs {before:.3g} -> {after:.3g}"
                )
        numbers = {"proof_error": proof.error, "effect": proof.effect} if proof else {}
        changes = reached + self._changes(plan, numbers, refused)
        changes += [Change(n, f"left as it was: {why}", applied=False) for n, why in fitted.left.items()]
        if not refused:
            self._check_budget(model, pruned)
        if cut:
            model.graph_module = pruned.graph_module
        return changes

    def _planned(self, ranks: Ranked, couplings: Couplings, context: Context) -> tuple[Plan, list[Change]]:
        """What goes, and what was measured for that."""
        if self.latency is None:
            return ranks.plan(self), []
        from nncompress.analysis.compensation import without_data
        from nncompress.bench.target_speed import clocked
        from nncompress.passes.prune_nodes.carry_out import carry_out
        from nncompress.passes.prune_nodes.latency_budget import by_latency

        def cut(plan: Plan) -> Model:
            fitted = without_data(ranks.model, plan.cut)
            return carry_out(ranks.model, plan.cut, fitted, None, verify=False)[0]

        plan, reached = by_latency(self, ranks, cut, clocked(context.target), context)
        return plan, [reached]

    def contributions(
        self, before: Model, after: Model, changes: list[Change], inputs: tuple[Tensor, ...], context: Context
    ) -> dict[str, float]:
        from nncompress.passes.prune_nodes.blame import group_contributions

        return group_contributions(before, changes, inputs)

    def _changes(self, plan: Plan, numbers: dict[str, float], refused: dict[str, str]) -> list[Change]:
        verbs = {"group": "nodes left", "reads": "channels read", "writes": "channels written"}
        changes = []
        for choice in plan.choices:
            units = plan.removed.get(choice.name, [])
            if choice.name in refused:
                changes.append(Change(choice.name, f"left: {refused[choice.name]}", applied=False))
            elif units:
                what = f"{choice.size - len(units)} of {choice.size} {verbs[choice.kind]}"
                loss = plan.losses[choice.name]
                details = {"nodes_before": choice.size, "removed": units, "loss": loss, **numbers}
                changes.append(Change(choice.name, what, details))
        for name in plan.dropped:
            changes.append(Change(name, "residual block left out", {"loss": plan.losses[name]}))
        return changes

    def _check_budget(self, model: Model, pruned: Model) -> None:
        """The budget is met, by the exact count of what is left.

        Raises:
            VerificationError: it is exceeded by more than 2 %.
        """
        from nncompress.analysis.cost import cost

        for unit, share in (("macs", self.macs), ("parameters", self.params)):
            if share is None:
                continue
            before, after = getattr(cost(model), unit), getattr(cost(pruned), unit)
            if after > before * share * (1 + BUDGET_TOLERANCE):
                raise VerificationError(
                    f"prune-nodes: the budget of {unit} was missed",
                    got=f"{after / before:.4f} left",
                    expected=f"{share:g}, within {BUDGET_TOLERANCE:.0%}",
                    remedy="this is a defect: please report the model's architecture",
                )
