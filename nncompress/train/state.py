"""Where a run is, and what it gives in the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from nncompress.results import Result

EPOCH = "epoch"  # what progress says of a step begins with


@dataclass(frozen=True)
class TrainResult(Result):
    """What a run did.

    Attributes:
        loss: mean over the last epoch, penalties and teacher included.
        validation: of the weights that were kept; empty without validation data.
        kept_epoch: whose weights were kept, from 1.
        stopped: "all epochs", or "no improvement" (--patience).
        epochs: one row each, as in the log.
    """

    kind: ClassVar[str] = "train"

    loss: float
    validation: dict[str, float]
    kept_epoch: int
    stopped: str
    epochs: tuple[dict[str, Any], ...]


@dataclass
class State:
    """Where a run is; with the tensors and the optimizer, all that a checkpoint needs."""

    step: int = 0
    loss_sum: float = 0.0
    samples: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float = math.inf  # or the metric that epochs are judged by, lower is better
    best_epoch: int = 0
    best_tensors: dict[str, Tensor] | None = None
    waited: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no run has: a checkpoint may be damaged.

        Raises:
            TypeError: a field is of another kind.
        """
        counts = (self.step, self.samples, self.best_epoch, self.waited)
        numbers = (self.loss_sum, self.best_loss, self.seconds)
        fits = all(type(count) is int and count >= 0 for count in counts)
        fits &= all(type(number) in (int, float) for number in numbers)
        if not fits or type(self.rows) is not list or not all(type(row) is dict for row in self.rows):
            raise TypeError("counts, sums or rows of another kind")
