"""A process that ends at a chosen instant, as tests of resuming need it."""

from __future__ import annotations


class Killed(Exception):
    """What ends it: nothing in the project catches this."""


class Kill:
    """A progress display that ends the process, as it were, at its n-th call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, description: str, done: int, total: int | None) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed
