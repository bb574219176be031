"""What a search tries next: families by bisection, and near the best of them layer by layer.

Nothing is near the best until the family that leads is settled. From then on two trials of three are near it,
the third goes on with the families behind: one of them may still come to be ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

from nncompress.search.candidates import Family, Recipe, recipe_key, untried
from nncompress.search.refine import Refinement
from nncompress.search.trial import Judge

Rows = Mapping[str, tuple[Recipe, dict[str, Any]]]
BEHIND = 3  # of so many trials, one goes to the families behind


class Proposals:
    """The same for every worker that has seen the same results.

    Args:
        searched: the families of the search.
        refinement: varies the best layer by layer; without it there is nothing to try but the families.
    """

    def __init__(
        self, judge: Judge, searched: Sequence[Family], refinement: Refinement | None = None
    ) -> None:
        self._judge, self._searched, self._refinement = judge, searched, refinement

    def next(self, rows: Rows, best: str | None) -> list[Recipe]:
        """Recipes to try, those first that are worth most; empty where nothing is left.

        Args:
            rows: recipe and result of every trial by its key.
            best: the key of the trial to take so far.
        """
        waiting = untried(
            self._searched, lambda each: self._verdict(each, rows), lambda each: self._reached(each, rows)
        )
        families = self._admitted(recipe for _, recipe in waiting)
        if best is None or self._refinement is None:
            return families
        recipe, row = rows[best]
        ahead = any(reached <= self._judge.goal(row) for reached, _ in waiting)
        if families and (ahead or len(rows) % BEHIND == 0):
            return families
        return self._admitted(self._refinement.recipes(recipe, rows)) or families

    def _admitted(self, recipes: Iterable[Recipe]) -> list[Recipe]:
        return [each for each in recipes if self._judge.bounds.admits(each)]

    def _verdict(self, recipe: Recipe, rows: Rows) -> bool | None:
        """Whether a family has to leave less, by this recipe of it; None where that was not tried. Families
        by time round more layers the less they leave: one that must not run in int8 leaves more, one that has
        to leaves less."""
        if not self._judge.bounds.admits(recipe):
            return self._judge.bounds.ends_in == "int8"
        if (key := recipe_key(recipe)) not in rows:
            return None
        row = rows[key][1]
        holds = self._judge.holds(row)
        return holds if self._judge.bounds.drop is not None or "failed" in row else not holds

    def _reached(self, recipe: Recipe, rows: Rows) -> float:
        _, row = rows.get(recipe_key(recipe), (recipe, {}))
        return self._judge.goal(row) if self._judge.holds(row) and self._judge.within(row) else inf
