"""`share`: the residual blocks of a stage use one 3×3 weight (ShaResNet, Boulch 2018).

A stage lies between two spatial reductions; blocks, stages and layers of equal shape are found in the graph.
The weight is one parameter then: its gradients add up when the network is trained on, and one copy is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.passes.base import BY_DEFAULT, Pass, option, step


@dataclass(frozen=True)
class Share(Pass):
    """Tie the 3×3 convolutions of a stage's residual blocks to one weight, then train on.

    The weight starts as the mean of the old ones, or with data as the one that changes the layers' outputs
    least. Layers that learnt different things lose it (--saving 1 shares as the paper): train afterwards.
    Where neither --relative nor --saving is given, only weights that are as good as equal are shared.
    """

    name = "share"
    summary = "residual blocks of a stage share one 3×3 weight"
    example = "nncompress share model.pt2 --saving 1 --data train.npz"
    amounts = ("relative", "saving", "adaptive")
    more = (
        "--saving 1 shares all (the paper's rule), --saving 0.5 where it costs least; then nncompress train"
    )
    afterwards = "Shared weights are a start for training: nncompress train."

    which: Literal["auto", "second-3x3", "all-3x3"] = option(
        "auto", help="which of a block's 3×3 [auto: the second where it has two, else its only one]"
    )
    first_blocks: Literal["auto", "share", "keep"] = option(
        "auto",
        help="blocks that change the shape [auto: they take part, but not in wide pre-activation networks]",
    )
    relative: float | None = option(
        None,
        above=0,
        below=1,
        help=f"share while no layer loses more than this share of its output's power {BY_DEFAULT}",
    )
    saving: float | None = option(
        None,
        above=0,
        most=1,
        help="share, where it costs least, until this part of what can be saved is; 1 shares everything",
    )
    adaptive: bool = option(False, help="the same as --saving 0.5, where --saving is not given")
    rescale: bool = option(True, help="with data, let batch norms take up a scale per block and channel")
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to skip, e.g. 'layer1*' (repeatable)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_several(("relative", "saving"), "how much is shared")
        if self.adaptive and self.relative is not None:
            raise UsageError("share: give one of --adaptive and --relative", got="both")
        if self.adaptive and self.saving is None:
            object.__setattr__(self, "saving", 0.5)

    requires = step("nncompress.passes.share.apply:requires")
    apply = step("nncompress.passes.share.apply:apply")
    ensures = step("nncompress.passes.share.apply:ensures")
