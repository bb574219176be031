"""What was asked of the ranks, and the choice that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nncompress.analysis.cost import Cost
from nncompress.analysis.weight_targets import Target
from nncompress.passes.factorize.choose import Choice, Option, by_budget, by_error, by_rank, by_ratio


@dataclass(frozen=True)
class RankRule:
    """What decides the ranks: the one of these that is set.

    Attributes:
        err: mean squared error that a layer stays below: of its weight, of its output or of the model's.
        share_lost: squared error that it stays below, as a share of that of a weight of zeros.
        rank: the same for every layer.
        ratios: by layer, the share of its own cost that it keeps.
        macs: share of its MACs that the model keeps; `params`, `latency`: likewise.
        faster: of the ranks with a small enough error, the fastest is taken.
    """

    err: float | None
    share_lost: float | None
    rank: int | None
    ratios: Mapping[str, float]
    macs: float | None
    params: float | None
    latency: float | None
    faster: bool

    @property
    def of_the_model(self) -> bool:
        """It is a budget of the model as a whole."""
        return (self.macs, self.params, self.latency) != (None, None, None)

    def unit(self, target: Target) -> str:
        """What is saved, and decides between ranks that are good enough: "macs", "parameters", "latency"."""
        if self.params is not None or not target.macs:
            return "parameters"
        by_error = self.err is not None or self.share_lost is not None
        return "latency" if self.latency is not None or (self.faster and by_error) else "macs"

    def limit(self, total: float, elements: int, minimized: str) -> float | None:
        """The squared error that a layer must stay below; None where something else decides.

        Args:
            total, elements: as in `Option`.
            minimized: whose error that is: "weight", "layer" or "model".
        """
        if self.err is not None:
            return self.err * (1 if minimized == "model" else elements)
        return None if self.share_lost is None else self.share_lost * total

    def choices(self, before: Cost | None, options: Sequence[Option], minimized: str) -> list[Choice]:
        """A choice per option, by anything but latency; for a budget, of those that have such a cost.

        Args:
            before: of the model; of a budget only.

        Raises:
            UsageError: a budget is out of reach; says what is within.
        """
        for unit, share in (("macs", self.macs), ("parameters", self.params)):
            if share is not None:
                counted = [option for option in options if option.unit == unit]
                return by_budget(getattr(before, unit), counted, share, unit, minimized == "model")
        if not options:
            return []
        if self.rank is not None:
            return [by_rank(option, self.rank) for option in options]
        if self.ratios:
            return [by_ratio(option, self.ratios[option.target.name]) for option in options]
        told = f"error {self.err:g}" if self.err is not None else f"relative error {self.share_lost:.3g}"
        limits = [self.limit(option.total, option.elements, minimized) or 0.0 for option in options]
        return [by_error(option, limit, told) for option, limit in zip(options, limits)]
