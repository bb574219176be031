"""The options of growth while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.options import Options, flag_of, option

AMOUNTS = ("grow_by", "grow_factor", "grow_quarter_of")
DEFAULT_BY = 16


@dataclass(frozen=True)
class GrowSettings(Options):
    """When, where and by how much a model grows while it is trained.

    Raises:
        UsageError: an option is out of bounds, or two of them do not go together.
    """

    name = "train"

    grow: Literal["never", "plateau"] = option("never", help="add nodes whenever the loss stops falling")
    grow_by: int | None = option(
        None, least=1, help=f"nodes that each group gets, on average [default: {DEFAULT_BY}]"
    )
    grow_factor: float | None = option(None, above=1, help="multiply the number of nodes by this")
    grow_quarter_of: int | None = option(
        None, least=4, metavar="N", papers=True, help="add a quarter of N nodes, up to N in all"
    )
    max_macs: float | None = option(None, above=0, help="grow up to so many multiply-accumulates")
    max_params: float | None = option(None, above=0, help="grow up to so many parameters")
    max_latency: float | None = option(
        None, above=1, help="grow up to this multiple of the latency it began with, measured in ONNX Runtime"
    )
    grow_where: Literal["auto", "std", "gradient", "uniform"] = option(
        "auto", help="which groups get most, as in nncompress grow"
    )
    grow_groups: int | None = option(None, least=1, help="only so many groups, those in most need")
    grow_init: Literal["auto", "he", "xavier", "split"] = option(
        "auto", help="scale of new nodes' random inputs, or copies, as in nncompress grow"
    )
    grow_exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers that get no nodes (repeatable)"
    )
    grow_patience: int = option(2, least=1, help="epochs without improvement that make a plateau")
    grow_delta: float = option(
        0.01, least=0, below=1, help="relative fall of the loss that counts as improvement here"
    )
    hold: int = option(
        0, least=0, metavar="EPOCHS", help="after a growth, so long only the new nodes' weights train"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_several(AMOUNTS, "how many nodes come")
        bounds = ("max_macs", "max_params", "max_latency", "grow_quarter_of")
        if self.grow == "never":
            said = [flag_of(name) for name, value in self.settings().items() if value is not None]
            if said:
                raise UsageError(f"train: {said[0]} belongs to --grow", remedy="--grow plateau")
        elif all(getattr(self, name) is None for name in bounds):
            raise UsageError(
                "train: --grow needs to know where to stop",
                expected="one of " + ", ".join(map(flag_of, bounds)),
                remedy="--max-macs 2e6 (nncompress inspect tells what the model has)",
            )
