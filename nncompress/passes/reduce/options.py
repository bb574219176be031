"""`reduce`: widths and ranks under one budget.

Removing nodes makes a layer narrower, factors make it lower in rank, each makes the other cheaper, and one
budget buys both: per group how many nodes are left, per layer which factors of which rank, each step where it
loses least per cost saved, in one unit: what the loss of the outputs feels. Then one walk through the net,
front to back, fits every layer once, with the nodes that it still reads and at its rank, to what the original
computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.options import LossWeights
from nncompress.passes.base import Pass, option, step


@dataclass(frozen=True)
class Reduce(Pass):
    """Fewer nodes and lower ranks together, within one budget, fitted to data in closed form.

    One of `--macs`, `--params` says how much is left.
    """

    name = "reduce"
    summary = "remove nodes and lower ranks together under one budget, repaired in one go"
    example = "nncompress reduce model.pt2 --macs 0.5 --data train.npz"
    recurrent = True
    afterwards = "Train or distil the result (nncompress train), or remove less."

    macs: float | None = option(None, above=0, below=1, help="leave this share of the MACs")
    params: float | None = option(None, above=0, below=1, help="leave this share of the parameters")
    blocks: Literal["grouped", "separate"] = option(
        "separate",
        help="residual streams: each block reads and writes some channels, or they go everywhere at once",
    )
    form: Literal["auto", "channel", "spatial", "tucker"] = option(
        "auto",
        help="factors of a convolution: K×K then 1×1, K×1 then 1×K, 1×1 then K×K then 1×1, or the best",
    )
    round_to: int = option(1, least=1, help="leave multiples of this many nodes and ranks; 8 suits most CPUs")
    loss_weight: tuple[str, ...] = option(
        (),
        metavar="LAYER=FACTOR",
        help="what is lost in layers of this name counts so many times (repeatable)",
    )
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers whose nodes and rank stay, e.g. 'head*' (repeatable)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        LossWeights(self.name, self.loss_weight)
        if self.macs is not None and self.params is not None:
            raise UsageError(
                "reduce: one budget says how much is left", got="--macs and --params", remedy="leave one out"
            )

    @property
    def budget(self) -> tuple[str, float]:
        """What is counted ("macs", "params"), and the share of it that is left.

        Raises:
            UsageError: nobody said.
        """
        for counted in ("macs", "params"):
            share = getattr(self, counted)
            if share is not None:
                return counted, share
        raise UsageError("reduce: how much is left?", got="no budget", remedy="--macs 0.5, or --params 0.5")

    requires = step("nncompress.passes.reduce.apply:requires")
    apply = step("nncompress.passes.reduce.apply:apply")
