"""A ranking: in which order the units of one choice go, and what is lost at each step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Units in the order in which they go, least important first.

    Attributes:
        order: `[n]`: units; those that are missing never go (at least one).
        loss: `[n + 1]`: what is lost once the first k are gone, in the criterion's unit; ascending from 0.
        scores: `[units]`: the importance of each unit alone.
    """

    order: tuple[int, ...]
    loss: Scores
    scores: Scores

    @classmethod
    def from_scores(cls, scores: Scores) -> Ranking:
        """Units that do not depend on each other: the loss adds up."""
        order = np.argsort(scores, kind="stable")
        loss = np.concatenate([[0.0], np.cumsum(np.maximum(scores[order], 0.0))])
        return cls(tuple(int(u) for u in order), loss, scores)

    @classmethod
    def from_elimination(cls, order: Iterable[int], loss: Iterable[float], size: int) -> Ranking:
        """Units eliminated one after the other; the score of each is what its step costs at least."""
        order = tuple(order)
        loss = np.maximum.accumulate(np.asarray(list(loss), float))
        scores = np.full(size, np.inf)
        scores[list(order)] = np.maximum.accumulate(np.diff(loss))
        return cls(order, loss, scores)

    def scaled(self, factor: float) -> Ranking:
        scores = self.scores.copy()
        scores[list(self.order)] *= factor  # what never goes stays infinite
        return Ranking(self.order, self.loss * factor, scores)

    def removed(self, count: int) -> list[int]:
        return sorted(self.order[:count])
