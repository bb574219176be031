"""`prune-nodes`: remove whole nodes (channels, hidden units, attention heads) and everything tied to them.

Which indices stand or fall together is found by `nncompress.analysis.couplings`, for any architecture. The
result is smaller in every runtime, needs no special kernels and computes exactly what the original computes
with the removed nodes' consumer weights at zero: that is checked on the model at hand (`--verify`). With
data, the layers that stay are fitted to what the original computed, in closed form (`--compensate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.extensions import offered
from nncompress.options import LossWeights, shares_of
from nncompress.passes.base import BY_DEFAULT, Context, Pass, option, step

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
    by_clock = ("latency",)
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
        help="leave this share of the latency, in --target on this machine (one thread, one sample); "
        "widths are multiples of 8",
    )
    threshold: float | None = option(None, help="remove nodes that score below this")
    outliers: float | None = option(
        None,
        above=0,
        papers=True,
        help="remove nodes whose score is outside mean ± K · variance of their group's",
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
    loss_weight: tuple[str, ...] = option(
        (),
        metavar="LAYER=FACTOR",
        help="with a budget: what is lost in layers of this name counts so many times (repeatable)",
    )
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers whose nodes stay, e.g. 'head*' (repeatable)"
    )
    round_to: int = option(1, least=1, help="leave a multiple of this many nodes where a group has that many")
    rotate: bool = option(
        False,
        help="also see a transformer's residual stream in its principal axes, if it then errs less on --data",
    )
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

        per_group = next((name for name in ("outliers", "ratios") if self._has(name)), None)
        if per_group is not None and self.scope != "auto":
            raise UsageError(
                f"prune-nodes: --{per_group} says of each group by itself which nodes go",
                got=f"--scope {self.scope}",
                remedy="leave --scope out",
            )
        if self.outliers is not None and self.round_to > 1:
            raise UsageError(
                "prune-nodes: --outliers takes the nodes that stand out, however many",
                got=f"--round-to {self.round_to}",
                remedy="leave --round-to out, or say how many nodes go by --ratio 0.1 alone",
            )
        LossWeights(self.name, self.loss_weight)
        budget = set(given) & {"--macs", "--params", "--latency"}
        if self.loss_weight and (not budget or self.scope == "group"):
            raise UsageError(
                "prune-nodes: --loss-weight weighs layers against each other under a budget",
                got="--scope group" if budget else " and ".join(given) or "no budget",
                remedy="leave --scope out"
                if budget
                else "--macs 0.7 alone as what is asked for, or leave --loss-weight out",
            )
        if self.share_lost is not None and self.scope == "global":
            raise UsageError(
                "prune-nodes: --relative is a share of each group",
                got="--scope global",
                remedy="leave --scope out, or say how many nodes go by --ratio 0.1 alone",
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

    requires = step("nncompress.passes.prune_nodes.apply:requires")
    apply = step("nncompress.passes.prune_nodes.apply:apply")
    contributions = step("nncompress.passes.prune_nodes.apply:contributions")
