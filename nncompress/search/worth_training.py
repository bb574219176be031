"""Which cuts a budget of training is spent on: those that keep every bound but that on the metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from nncompress.errors import NNCompressError
from nncompress.search.candidates import SHARES, Family, recipe_key
from nncompress.search.finetune import ROUNDS, in_two
from nncompress.search.records import Records
from nncompress.search.trial import Judge, recipe_of

Row = dict[str, Any]


class WorthTraining:
    """What to train after a search.

    Args:
        trials: those of the search; what is measured besides is kept there.
        searched: its families.
        told: called with each trial that is made, or that fails when its latency is measured.
    """

    def __init__(
        self, judge: Judge, trials: Records, searched: Sequence[Family], told: Callable[[Row], None]
    ) -> None:
        self._judge, self._trials, self._searched, self._told = judge, trials, searched, told

    def found(self, best: str | None) -> list[str]:
        """Keys of trials, the weakest cut first.

        Args:
            best: the key of the trial to take so far.
        """
        rows = {key: row for key, row in self._trials.all().items() if "trained" not in row}
        measured = {key: row for key, row in rows.items() if {"lost", "failed"} & set(row) == {"lost"}}
        bounds = self._judge.bounds
        if best is None and (bounds.latency is not None or bounds.size is not None):
            return self._just_within(measured)
        return self._too_strong(measured, inf if best is None else self._judge.goal(rows[best]))

    def _too_strong(self, rows: dict[str, Row], least: float) -> list[str]:
        """Cuts that are better by the goal than `least`, those that lose least of them; none both better and
        safer than another."""
        missed = [key for key, row in rows.items() if self._misses(row)]
        found: list[str] = []
        for key in sorted(missed, key=lambda key: (rows[key]["lost"], key)):
            if len(found) == 2**ROUNDS - 1:  # as many as the rounds of bisection tell apart
                break
            row = rows[key]
            if self._judge.bounds.size is not None and row["size"] > self._judge.bounds.size:
                continue
            if self._fits(key, row) and self._judge.goal(row) < least:
                found, least = [*found, key], self._judge.goal(row)
        return found

    def _just_within(self, rows: dict[str, Row]) -> list[str]:
        """Where nothing that is as small and as fast as is asked keeps the metric: of the family that comes
        closest, the weakest cut that is so small and fast."""
        held = {key: self._fits(key, row) for key, row in rows.items()}
        apart = {
            key: (1.0 if held[key] else self._judge.excess(row), row["lost"], key)
            for key, row in rows.items()
            if "failed" not in row  # when its latency was measured
        }
        closest = min(apart, key=apart.__getitem__, default=None)
        if closest is None:
            return []
        found, lead = closest, recipe_key(recipe_of(rows[closest]))
        for family in self._searched:
            line = [made for share in SHARES if (made := family.recipe(share))]
            if lead not in map(recipe_key, line):
                continue
            low, high = -1, len(line)  # what is before is small and fast enough, or fails
            while high - low > 1:
                middle = (low + high) // 2
                key = recipe_key(line[middle])
                row = rows.get(key) or self._trials.get(key)
                if row is None:
                    row = self._judge.run(line[middle])
                    self._trials.put(key, row)
                    self._told(row)
                fits = self._fits(key, row)
                low, high = (middle, high) if fits or "failed" in row else (low, middle)
                found = key if fits else found
            break
        chosen = self._trials.get(found) or {}
        return [found] if chosen and self._fits(found, chosen) and self._misses(chosen) else []

    def _misses(self, row: Row) -> bool:
        """It is a cut that loses too much."""
        return not self._judge.holds(row) and bool(in_two(recipe_of(row))[0])

    def _fits(self, key: str, row: Row) -> bool:
        """Whether a trial holds the bounds on size and latency; of what loses too much, no latency was
        measured before."""
        if "failed" in row:
            return False
        if self._judge.bounds.timed and self._judge.machine not in row.get("latency", {}):
            try:
                timed = self._judge.latency(self._judge.compressed(recipe_of(row)))
                row["latency"] = {**row.get("latency", {}), self._judge.machine: timed}
            except NNCompressError as error:
                row["failed"] = error.what
                self._told(row)
            self._trials.put(key, row)
        return "failed" not in row and self._judge.within(row)
