"""How much of a long run is shown; what is left out is said beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
SHOWN = 2000  # rows, points: what is kept at all; a page shows as many as fit it
PLOTS = 12  # of a kind
MOST_TEXT = 2000  # characters of one text
MOST_CODE = 20_000  # of one to copy, which is shown whole or not at all


def first(rows: Sequence[T], most: int) -> tuple[list[T], int]:
    """The first ones, and how many are left out."""
    return list(rows[:most]), max(0, len(rows) - most)


def thinned(rows: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly from first to last; both are kept."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def clipped(text: str) -> str:
    """A text that a file may make as long as it likes."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} […{len(text)} characters]"
