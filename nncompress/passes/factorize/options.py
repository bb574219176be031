"""`factorize`: replace a layer by two or three smaller ones of lower rank.

The ranks follow in closed form from one decomposition per layer, and a layer is replaced only where its
factors multiply less than it did (the papers' eq. 2.1, n < m_in·m_out / (m_in + m_out), for whatever form the
factors take). Depthwise convolutions have no rank to lower and are never touched.

From the weights alone, the error of the weights is minimised. With data, it is the error of what the layers,
or the whole model, compute; then the factors are fitted to what the compressed layers before them produce.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nncompress.errors import UsageError
from nncompress.options import LossWeights, shares_of
from nncompress.passes.base import BY_DEFAULT, Pass, option, step

SELECTORS = ("err", "relative", "energy", "rank", "ratio", "ratios", "macs", "params", "latency")


@dataclass(frozen=True)
class Factorize(Pass):
    """Low-rank factors instead of layers.

    One of `SELECTORS` decides the ranks.
    """

    name = "factorize"
    summary = "replace layers by low-rank factors where that multiplies less"
    example = "nncompress factorize model.pt2 --macs 0.5 --data train.npz"
    recurrent = True
    amounts = SELECTORS
    by_clock = ("latency", "faster")
    more = "--macs 0.7, best with --data"
    tensorwise = ("err", "relative", "energy", "rank", "ratio", "round_to", "exclude")

    err: float | None = option(
        None,
        above=0,
        papers=True,
        help="mean squared error allowed per layer, of its weight (the papers' rule, 1e-3 there): what that "
        "does to a network depends on the size of its weights",
    )
    relative: float | None = option(
        None,
        above=0,
        below=1,
        help=f"squared error allowed per layer, as a share of what it could lose {BY_DEFAULT}",
    )
    energy: float | None = option(None, above=0, below=1, help="share of the squared singular values to keep")
    rank: int | None = option(None, least=1, help="the same rank for every layer")
    ratio: float | None = option(None, above=0, below=1, help="share of its own MACs that every layer keeps")
    ratios: tuple[str, ...] = option(
        (),
        metavar="LAYER=SHARE",
        help="share of its own MACs that one layer keeps; layers not named stay (repeatable)",
    )
    macs: float | None = option(
        None, above=0, below=1, help="share of its MACs that the model keeps, at the least error in all"
    )
    params: float | None = option(
        None, above=0, below=1, help="share of its parameters that the model keeps, at the least error in all"
    )
    latency: float | None = option(
        None,
        above=0,
        below=1,
        help="share of its latency that the model keeps, in --target on this machine (one thread, one "
        "sample), at the least error in all",
    )
    form: Literal["auto", "channel", "spatial", "tucker"] = option(
        "auto",
        help="factors of a convolution: K×K then 1×1, K×1 then 1×K, 1×1 then K×K then 1×1, or the best",
    )
    minimize: Literal["auto", "weight", "layer", "model"] = option(
        "auto",
        help="whose error: the weight's, or with data that of the layer's or the model's output; auto: the "
        "weight's without data or for --err, else the model's; for a budget without data on random tokens",
    )
    refit: bool = option(True, help="with data, fit the factors to what the compressed layers produce")
    faster: bool = option(
        False, help="take only factors measured to be faster than the layer, in --target on this machine"
    )
    round_to: int = option(1, least=1, help="ranks are multiples of this; 16 suits most CPUs")
    loss_weight: tuple[str, ...] = option(
        (),
        metavar="LAYER=FACTOR",
        help="with a budget: what is lost in layers of this name counts so many times (repeatable)",
    )
    exclude: tuple[str, ...] = option((), metavar="PATTERN", help="layers to skip, e.g. 'head*' (repeatable)")

    def __post_init__(self) -> None:
        super().__post_init__()
        shares_of(self.name, "ratios", self.ratios)
        given = [name for name in SELECTORS if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise UsageError(
                "factorize: give one way to choose the ranks", got=" and ".join(f"--{name}" for name in given)
            )
        LossWeights(self.name, self.loss_weight)
        if self.loss_weight and not set(given) & {"macs", "params", "latency"}:
            raise UsageError(
                "factorize: --loss-weight weighs layers against each other under a budget",
                got=f"--{given[0]}" if given else "no budget",
                remedy="--macs 0.7 alone as what is asked for, or leave --loss-weight out",
            )

    @property
    def asked(self) -> dict[str, Any]:
        """What decides the ranks, as `RankRule` takes it, without shares by layer."""
        named = {name: getattr(self, name) for name in ("err", "rank", "macs", "params", "latency", "faster")}
        return named | {"share_lost": self.share_lost if self.energy is None else 1 - self.energy}

    @property
    def forms(self) -> str:
        """Which are tried; a rank given for all layers is that of one form."""
        return "channel" if self.rank is not None and self.form == "auto" else self.form

    def treats(self, kind: str) -> bool:
        return kind == "linear"

    requires = step("nncompress.passes.factorize.apply:requires")
    apply = step("nncompress.passes.factorize.apply:apply")
    ensures = step("nncompress.passes.factorize.apply:ensures")
