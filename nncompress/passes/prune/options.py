"""`prune`: zero the connections whose weight is small.

The thesis (Çallı 2017, §2.1.1 and §3.3.4) gives every weight matrix a threshold of its own, from its mean and
variance. Ours is K times the root mean square about zero, sqrt(mean² + std²): for the usual zero-mean matrix
that is K standard deviations, and a matrix of nearly constant weights is not wiped out by its own mean.
Zeros cost nothing to store compressed and lower the rank that `factorize` finds; dense kernels do not run
faster for them. For that, remove what became dead (`--remove-dead`), or use `prune-nodes`. An N:M pattern is
what sparse tensor cores read: with data, the weights that stay make up for the others
(`nncompress.analysis.rounding.sparsegpt`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.passes.base import BY_DEFAULT, Pass, option, step

AMOUNTS = ("relative", "std", "threshold", "sparsity", "pattern")


@dataclass(frozen=True)
class Prune(Pass):
    """Zero small weights of convolutions, linear and recurrent layers and stored matrix products.

    One of `relative`, `std`, `threshold`, `sparsity` and `pattern` decides which.
    With `pattern` and --data, the weights that stay make up for those that go.
    """

    name = "prune"
    summary = "zero small weights: by threshold, to a sparsity, or in an N:M pattern"
    example = "nncompress prune model.pt --std 0.5"
    amounts = AMOUNTS
    more = "--std 0.5, or --sparsity 0.5"
    tensorwise = (*AMOUNTS, "scope", "exclude")
    recurrent = True

    relative: float | None = option(
        None,
        above=0,
        below=1,
        help=f"zero the smallest of each matrix, up to this share of its squares {BY_DEFAULT}",
    )
    std: float | None = option(None, above=0, help="zero |w| < K·sqrt(mean²+std²) of its own matrix")
    threshold: float | None = option(None, above=0, help="zero |w| < this, in every matrix")
    sparsity: float | None = option(
        None, least=0, below=1, help="zero this share of the weights, smallest first"
    )
    scope: Literal["global", "layer"] = option(
        "global", help="--sparsity over the whole model, or in each layer"
    )
    pattern: str | None = option(None, metavar="N:M", help="keep the N largest of every M inputs, e.g. 2:4")
    exclude: tuple[str, ...] = option((), metavar="PATTERN", help="layers to skip, e.g. 'head*' (repeatable)")
    remove_dead: bool = option(False, help="then remove nodes that became dead; the function stays the same")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(
                "prune: give one way to choose the weights", got=" and ".join(f"--{k}" for k in given)
            )
        if self.scope != "global" and self.sparsity is None:
            raise UsageError(
                f"prune: --scope {self.scope} is for --sparsity; other options look at each layer by itself",
                remedy="leave --scope out, or say how much goes by --sparsity 0.5 alone",
            )
        if self.pattern is not None:
            parse_pattern(self.pattern)

    def treats(self, kind: str) -> bool:
        return kind != "embedding"

    def needs_network(self) -> str:
        if self.sparsity is not None and self.scope == "global":
            return "--sparsity compares the weights of all layers; add --scope layer"
        return ""

    requires = step("nncompress.passes.prune.apply:requires")
    apply = step("nncompress.passes.prune.apply:apply")
    ensures = step("nncompress.passes.prune.apply:ensures")


def parse_pattern(pattern: str) -> tuple[int, int]:
    try:
        n, m = (int(part) for part in pattern.split(":"))
    except ValueError:
        n = m = 0
    if not 0 < n < m:
        raise UsageError("prune: --pattern is not N:M with 0 < N < M", got=pattern, expected="e.g. 2:4")
    return n, m
