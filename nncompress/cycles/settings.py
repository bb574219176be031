"""The options of `cycle`: when to prune what, between trainings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.options import Options, option
from nncompress.passes import PruneNodes


@dataclass(frozen=True)
class CycleSettings(Options):
    """When to prune what, between trainings.

    Raises:
        UsageError: an option is out of bounds, or two of them do not go together.
    """

    name = "cycle"

    max_cycles: int = option(20, least=1, help="prune at most so often; a last training follows")
    criterion: str = option(
        "activation-variance", metavar="NAME", help="what prune-nodes removes nodes by (see its --help)"
    )
    outliers: float | None = option(
        None, above=0, papers=True, help="remove nodes outside mean ± K · variance of their layer's scores"
    )
    threshold: float | None = option(
        None, least=0, help="remove nodes that score at or below this [default: 0]"
    )
    ratio: float | None = option(None, above=0, below=1, help="remove this share of every layer's nodes")
    sparsity: float | None = option(
        None, above=0, below=1, help="prune connections instead, along a cubic ramp up to this share"
    )
    compensate: bool = option(
        False, help="fit the layers that stay to the model before pruning, in closed form"
    )
    distort: bool = option(
        False, papers=True, help="perturb the weights after pruning: rand · (1 − var(weights))"
    )
    max_loss: float | None = option(
        None, above=0, help="take a cycle back whose trained loss is above this, and try fewer nodes"
    )
    retries: int = option(
        0, least=0, papers=True, help="at the end, distort and train so many times more, and keep the best"
    )
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers whose nodes stay, e.g. 'head*' (repeatable)"
    )
    grow: Literal["never", "auto", "std", "gradient", "uniform"] = option(
        "never", help="after pruning add nodes where they are needed, up to the budget; as grow's --where"
    )
    max_macs: float | None = option(None, above=0, help="--grow: so many multiply-accumulates")
    max_params: float | None = option(None, above=0, help="--grow: so many parameters")
    samples: int | None = option(None, least=1, help="samples that statistics are taken over [default: all]")

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = ("outliers", "threshold", "ratio", "sparsity")
        self.refuse_several(choices, "what is pruned")
        budgets = [k for k in ("max_macs", "max_params") if getattr(self, k) is not None]
        if len(budgets) != (self.grow != "never"):
            raise UsageError(
                "cycle: --grow goes with one budget",
                got=" and ".join(f"--{k.replace('_', '-')}" for k in budgets) or "none",
                expected="--max-macs or --max-params" if self.grow != "never" else "no budget without --grow",
            )
        if all(getattr(self, name) is None for name in choices):
            object.__setattr__(self, "threshold", 0.0)
        PruneNodes(criterion=self.criterion)  # refuses an unknown one now
