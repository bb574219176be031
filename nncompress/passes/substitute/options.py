"""`substitute`: cheaper operations in the place of K×K convolutions (Çallı 2017, §2.3).

Each starts from the trained weights by least squares; with data it is then fitted to what the layer computed.
The thesis trained such networks from scratch: on CIFAR-10 they did as well as convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.passes.base import BY_DEFAULT, Pass, option, step

RATIO = 0.5


@dataclass(frozen=True)
class Substitute(Pass):
    """Replace convolutions by separable, kernel-composing or stacked 3×3 ones where that multiplies less.

    The first convolution is skipped unless --layers names it. Train or distil afterwards: operations that
    were not trained rarely do what a convolution did, and where none of --relative, --layers and --macs is
    given, only those that do are put in. --relative 1 replaces all.
    """

    name = "substitute"
    summary = "cheaper operations instead of K×K convolutions"
    example = "nncompress substitute model.pt2 --with separable --relative 1 --data train.npz"
    protects = ""
    amounts = ("relative", "layers", "macs")
    more = "--macs 0.8, or --relative 1 for all, best with --data; then nncompress train"
    afterwards = (
        "Substitutes are a start for training: nncompress train, or replace fewer layers (--relative 0.01, "
        "--layers, --macs)."
    )

    with_: Literal["separable", "nonlinear-separable", "kernel-composing", "stacked-3x3"] = option(
        "separable",
        help="depthwise and 1×1, the same with batch norm and ReLU between, 1×K and K×1, or two or three 3×3",
    )
    relative: float | None = option(
        None,
        above=0,
        most=1,
        help=f"replace what loses at most this share of its weight's squares {BY_DEFAULT}",
    )
    layers: tuple[str, ...] = option(
        (), metavar="PATTERN", help="which layers, e.g. 'layer3*' (repeatable) [default: all but the first]"
    )
    macs: float | None = option(
        None,
        above=0,
        below=1,
        help="replace what saves most first, until the model keeps this share of its MACs",
    )
    channels: int | None = option(
        None, least=1, help="channels between 1×K and K×1, or between 3×3s [default: what --ratio allows]"
    )
    ratio: float | None = option(
        None, above=0, below=1, help="share of a layer's MACs that these two keep [default: 0.5]"
    )
    linear: bool = option(False, help="no activation between 1×K and K×1, or between 3×3s")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_several(("channels", "ratio"), "how many channels lie between")
        self.refuse_several(("relative", "macs"), "which layers are replaced")
        for name in ("channels", "ratio", "linear"):
            if name in self.settings() and "separable" in self.with_:
                raise UsageError(
                    f"substitute: --{name} goes with another operation",
                    got=f"--with {self.with_}",
                    expected="--with kernel-composing or stacked-3x3",
                    remedy=f"leave --{name} out",
                )

    requires = step("nncompress.passes.substitute.apply:requires")
    apply = step("nncompress.passes.substitute.apply:apply")
    ensures = step("nncompress.passes.substitute.apply:ensures")
