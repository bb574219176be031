"""The one bound on what a pass keeps of its data: `BUDGET` bytes for each kind of thing that it keeps.

| what is kept                                       | beyond the budget                                  |
|----------------------------------------------------|----------------------------------------------------|
| the values of a batch while it runs                | fewer samples to a batch, at least one             |
| those with their gradients, twice the budget       | fewer samples to a batch, at least one             |
| checkpoints between the layers of a layer-wise run | temporary files; or computed again, where no room  |
| outputs that are compared                          | computed again, or fewer samples compared          |
| moments of layers' inputs                          | temporary files; or further passes over the data   |
| those of a group that shares a weight              | temporary files; or memory all the same            |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

BUDGET = 256 << 20

Item = TypeVar("Item")


@dataclass
class ByteBudget:
    """Bytes that may be kept, and are; runs that go side by side share one."""

    limit: float = field(default_factory=lambda: BUDGET)
    taken: int = 0

    def fits(self, added: int) -> bool:
        """Take `added` bytes if there is room for them."""
        if added > 0 and self.taken + added > self.limit:
            return False
        self.taken += added
        return True

    def leave(self, freed: int) -> None:
        """So many bytes are kept no longer."""
        self.taken -= freed


def in_runs(items: Iterable[Item], bytes_of: Callable[[Item], dict[str, int]]) -> list[list[Item]]:
    """The items in order, cut into runs that fit in the budget (or of one item).

    Args:
        bytes_of: an item's needs by name; what items of a run share counts once.
    """
    runs: list[list[Item]] = [[]]
    held: dict[str, int] = {}
    for item in items:
        own = bytes_of(item)
        if runs[-1] and sum((held | own).values()) > BUDGET:
            runs.append([])
            held = {}
        runs[-1].append(item)
        held |= own
    return runs
