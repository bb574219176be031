"""`grow`: add nodes (channels, hidden units, attention heads), the reverse of `prune-nodes`.

The same couplings say which tensors a node touches, for any architecture. The grown model computes what it
computed before: that is checked on the model at hand, and that a gradient reaches the new nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.passes.base import Pass, option, step

DEFAULT_BY = 16
AMOUNTS = ("by", "factor", "quarter_of", "macs", "params", "latency")


@dataclass(frozen=True)
class Grow(Pass):
    """Every new node gets its place in all tensors that its group touches; training it is the next step."""

    name = "grow"
    summary = "add nodes (channels, heads, hidden units) without changing what the model computes"
    example = "nncompress grow model.pt2 --by 16 --where auto --data images/"
    stored_weights = False
    by_clock = ("latency",)

    by: int | None = option(
        None, least=1, help=f"add so many nodes to every group, on average [default: {DEFAULT_BY}]"
    )
    factor: float | None = option(None, above=1, help="multiply the number of nodes by this")
    quarter_of: int | None = option(
        None, least=4, metavar="N", papers=True, help="add a quarter of N nodes, up to N in all"
    )
    macs: float | None = option(None, above=1, help="grow to this multiple of the MACs")
    params: float | None = option(None, above=1, help="grow to this multiple of the parameters")
    latency: float | None = option(
        None, above=1, help="grow to this multiple of the latency, measured in --target"
    )
    where: Literal["auto", "std", "gradient", "uniform"] = option(
        "auto",
        help="which groups get most: by spread of activations, by gradient of candidate nodes;"
        " auto: gradient with labels that fit, std with data, else uniform",
    )
    groups: int | None = option(None, least=1, help="only so many groups, those in most need [default: all]")
    init: Literal["auto", "he", "xavier", "split"] = option(
        "auto",
        help="new nodes: silent, with random inputs of that scale (auto: He before a rectifier);"
        " or copies that share their original's outputs",
    )
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers that get no nodes, e.g. 'head*' (repeatable)"
    )
    round_to: int = option(1, least=1, help="add multiples of this many nodes")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_several(AMOUNTS, "how many nodes come")

    requires = step("nncompress.passes.grow.apply:requires")
    apply = step("nncompress.passes.grow.apply:apply")
