"""`cluster`: few distinct values per weight, so that a file can store indices of few bits.

The thesis rounded weights to two decimals (Çallı 2017 §2.2.3) and could not store the indices in fewer bits.
Here a codebook is found by exact one-dimensional k-means, and every file that is written holds codebooks and
indices of 1, 2, 4 or 8 bits (`nncompress.ir.formats.packed`). Within the model the weights stay ordinary
floats, so any other pass may follow.

With data, what counts is the error of a layer's output. Its k-means weighs each weight's squared error by the
curvature (Choi et al. 2017, "Towards the limit of network quantization"), and rounding compensates: what one
weight's rounding does to the output is made up for by those not yet rounded
(`nncompress.analysis.rounding.gptq`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.passes.base import BY_DEFAULT, Pass, option, step

AMOUNTS = ("relative", "decimals", "codebook")
SIZES = (2, 4, 16, 256)  # of a codebook: indices of 1, 2, 4 and 8 bits


@dataclass(frozen=True)
class Cluster(Pass):
    """Replace weights by the nearest entries of a codebook; zeros stay zero.

    One of `relative`, `decimals` and `codebook` decides how many. With data, errors of the layers' outputs
    are kept small instead of errors of the weights.
    """

    name = "cluster"
    summary = "few distinct values per weight, stored as codebook and indices of 1 to 8 bits"
    example = "nncompress cluster model.pt2 --codebook 16 --data calibration.npz"
    amounts = AMOUNTS
    more = "--codebook 16, best with --data"
    tensorwise = (*AMOUNTS, "per", "exclude")
    recurrent = True

    relative: float | None = option(
        None,
        above=0,
        below=1,
        help="the fewest of 2, 4, 16 or 256 values that lose at most this share of a weight's squares "
        f"{BY_DEFAULT}",
    )
    decimals: int | None = option(
        None, least=0, most=6, papers=True, help="round to this many decimals (the thesis: 2)"
    )
    codebook: int | None = option(
        None, least=2, most=256, metavar="K", help="K values per codebook, by exact k-means"
    )
    per: Literal["tensor", "channel"] = option("tensor", help="a codebook for each weight, or output channel")
    weighting: Literal["none", "inputs", "fisher"] | None = option(
        None,
        help="how k-means weighs errors: all alike, by input second moments, or by the Fisher diagonal "
        "[default: inputs with --data, else none]",
    )
    compensate: bool = option(
        True, help="with --data: the rounding of a weight is made up for by those not yet rounded"
    )
    exclude: tuple[str, ...] = option((), metavar="PATTERN", help="layers to skip, e.g. 'head*' (repeatable)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_several(AMOUNTS, "how many values there are")
        if self.decimals is not None and (self.per != "tensor" or self.weighting not in (None, "none")):
            raise UsageError(
                "cluster: --decimals has no codebook",
                got="--per channel" if self.per != "tensor" else f"--weighting {self.weighting}",
                remedy="leave it out, or give --codebook K instead",
            )

    requires = step("nncompress.passes.cluster.apply:requires")
    apply = step("nncompress.passes.cluster.apply:apply")
    ensures = step("nncompress.passes.cluster.apply:ensures")
