"""How long work says how far it is, without knowing who listens.

    progress.step("calibrating on images", done=128, total=512)

The command line draws a bar from it; a library caller may pass nothing and get `NullProgress`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Whatever wants to hear how far the work is."""

    def step(self, description: str, done: int, total: int | None) -> None:
        """`done` of `total` units of `description` are finished; `total` is None where it is unknown.

        A new description begins a new piece of work. Called often: an implementation must be cheap.
        """


class NullProgress:
    """Nobody listens."""

    def step(self, description: str, done: int, total: int | None) -> None:
        return None
