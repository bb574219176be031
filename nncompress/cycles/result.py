"""What a run of cycles gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nncompress.results import Result


@dataclass(frozen=True)
class Cycle:
    """One training and what was pruned after it.

    Attributes:
        nodes: per group, as trained; loss: of the kept epoch; validation: the same held out.
        pruned: nodes (connections, with `sparsity`) removed after this training; grown: nodes added then.
        accepted: False where the loss was above `max_loss` and the pruning before it was taken back.
    """

    cycle: int
    nodes: dict[str, int]
    loss: float
    validation: dict[str, float]
    epochs: int
    pruned: int
    accepted: bool
    seconds: float
    grown: int = 0


@dataclass(frozen=True)
class CycleResult(Result):
    """All cycles, and the last training, after which nothing is pruned.

    Attributes:
        stopped: "nothing left to prune", "max cycles", or "the loss allows no fewer nodes".
    """

    kind: ClassVar[str] = "cycle"

    cycles: tuple[Cycle, ...]
    nodes: dict[str, int]
    loss: float
    stopped: str

    @property
    def prunings(self) -> int:
        """How often something was removed or added."""
        return sum(cycle.pruned + cycle.grown > 0 for cycle in self.cycles)
