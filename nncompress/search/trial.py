"""One trial: a recipe applied, and measured as far as it deserves.

How far the outputs are from the original's first, on few samples; where that is no further than what was seen
to lose too much, the metric on a quarter of the samples; on all of them where that leaves it open; latency,
in turns with the original, only of those that hold the bound, and where that is near the fastest so far, in
turns with it.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from nncompress import pipeline
from nncompress.analysis.answer import Predict, known_answer
from nncompress.analysis.cost import cost
from nncompress.analysis.distance.drift import MOST, Reference, Samples, amount
from nncompress.analysis.metrics.base import Scores
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.benchmarking.latency.target import clocked
from nncompress.data import Dataset
from nncompress.devices import machine
from nncompress.errors import DataError, ModelFileError, NNCompressError, OutputError, UsageError
from nncompress.ir import Model
from nncompress.loading import json_schema
from nncompress.loading.json_schema import (
    Check,
    Rejected,
    finite,
    listed,
    mapped,
    optional,
    plain,
    table_with,
)
from nncompress.passes import Context, Quantize
from nncompress.passes.base import Precision
from nncompress.recipe import make_pass
from nncompress.results import Estimate
from nncompress.runtimes import open_artifact
from nncompress.search.candidates import Recipe, recipe_key
from nncompress.search.finetune import TRAINED, in_two
from nncompress.search.loss import lost
from nncompress.search.measure import Measure
from nncompress.search.promise import upper
from nncompress.search.records import key_of

FIRST = 4  # of so many samples, one is looked at first
SURE = 0.99  # confidence with which a recipe is given up on those
FURTHER = 2.0  # times as far from the original's outputs as
ENOUGH = 3  # trials that were given up, a trial is not measured by the metric
KEPT = 256 << 20  # bytes of weights of models in float that are kept, to be rounded by other recipes


def record(value: Any) -> dict[str, Any]:
    """Check what is kept of a trial.

    Raises:
        Rejected: it is something else.
    """
    row = {key: found for key, found in _RECORD(value).items() if found is not None}
    measured = {"macs", "size", "lost", "samples"} <= set(row)
    if measured and row["lost"] > row.get("at_most", math.inf):
        raise Rejected("more was lost than is said at most")
    if not measured and "failed" not in row:
        raise Rejected("neither measured nor refused")
    return row


def _pass(value: Any) -> dict[str, Any]:
    entry: dict[str, Any] = table_with(name=plain(str))(value)
    try:
        make_pass(entry.get("name", ""), {k: v for k, v in entry.items() if k != "name"}, "a trial")
    except UsageError as error:
        raise Rejected(error.what) from error
    return entry


def _counted(least: int) -> Check:
    return optional(plain(int, lambda number: least <= number < 2**40))


def _positive(value: Any) -> Any:
    if finite(value) <= 0:
        raise Rejected(f"{value} is not positive")
    return value


_RECORD = json_schema.record(
    recipe=listed(_pass),
    worker=plain(str),
    macs=optional(finite),
    size=optional(_positive),
    lost=optional(finite),
    at_most=optional(finite),
    needed=_counted(1),
    samples=_counted(1),
    error=optional(finite),
    latency=optional(
        mapped(plain(str), json_schema.record(share=_positive, low=finite, high=finite, seconds=_positive))
    ),
    failed=optional(plain(str)),
    trained=optional(TRAINED),
    seconds=finite,
)


def recipe_of(row: dict[str, Any]) -> Recipe:
    """The passes of a trial."""
    return tuple(
        make_pass(entry["name"], {k: v for k, v in entry.items() if k != "name"}, "a trial")
        for entry in row["recipe"]
    )


@dataclass(frozen=True)
class Bounds:
    """What a result has to hold.

    Attributes:
        drop: of the metric, a share as 0 … 1; None where it is what is minimised.
        size: bytes of weights.
        latency: seconds per sample, in the target with one thread.
        goal: what is minimised under these: "latency", "macs" or "size".
        target: where latencies are measured (`nncompress.targets`); None where none is.
        metric: see `Measure`.
        ends_in: the precision in which the result will run: floats are timed in that one, "int8" is what
            every recipe ends in; None: whichever serves the goal.
    """

    drop: float | None
    size: float | None
    latency: float | None
    goal: str
    target: str | None = None
    metric: str = "top1"
    ends_in: Precision | None = None

    def admits(self, recipe: Recipe) -> bool:
        """Its result runs in the precision that was asked for."""
        rounds = any(isinstance(each, Quantize) for each in recipe)
        return self.ends_in is None or rounds == (self.ends_in == "int8")

    @property
    def timed(self) -> bool:
        """Some of it is about latency."""
        return self.latency is not None or (self.drop is not None and self.goal == "latency")


class Judge:
    """Tries recipes on one original.

    Args:
        selection: samples to choose by. Passes fit to them too, unless `context` has other data.
    """

    def __init__(self, original: Model, selection: Dataset, context: Context, bounds: Bounds) -> None:
        self.original, self.bounds = original, bounds
        self._selection, self._context = selection, context
        count = selection.planned_samples() or len(selection)
        self._limits = (max(count // FIRST, 1), None)
        self.measure = Measure(original, bounds.metric)
        predict = open_artifact(original).run
        self._original = [self._scores(predict, known_answer(original), limit) for limit in self._limits]
        samples = Samples.draw(original, *selection.split(), context.seed)
        self._outputs = Reference(original, samples, "the original") if self._limits[0] > MOST else None
        self._floats: dict[str, Model] = {}  # by recipe, the latest last
        self._latency: ModelLatency | None = None
        self._seconds: float | None = None
        self._fastest: Estimate | None = None  # share of the fastest model that holds the bound
        self.machine = key_of(machine())  # latencies are compared within one

    def compressed(self, recipe: Recipe) -> Model:
        """As `compress --recipe` makes it. What comes before the rounding is kept: others round it in other
        ways."""
        cut, rounding = in_two(recipe)
        if not cut or not rounding:
            return self._float(cut) if cut else self._made(self.original, rounding)
        return self._made(self._float(cut), rounding)

    def _float(self, cut: Recipe) -> Model:
        key = recipe_key(cut)
        made = self._floats.pop(key, None) or self._made(self.original, cut)
        self._floats[key] = made
        while len(self._floats) > 1 and sum(cost(each).bytes for each in self._floats.values()) > KEPT:
            del self._floats[next(iter(self._floats))]
        return made

    def _made(self, model: Model, recipe: Recipe) -> Model:
        context = replace(self._context, notes=[], warnings=[])
        return pipeline.run(model, recipe, context, original=self.original)[0]

    def run(
        self,
        recipe: Recipe,
        tried: Iterable[dict[str, Any]] = (),
        make: Callable[[], tuple[Model, dict[str, Any]]] | None = None,
    ) -> dict[str, Any]:
        """Carry out and measure; a pass that refuses is a result too.

        Args:
            tried: results of trials, which may tell that this one is not worth the metric.
            make: another way to the model, and what the row has to say of it.

        Raises:
            OutputError: there is no room for temporary files: nothing that the recipe is to blame for, and
                that stays.
            UsageError, ModelFileError, DataError: nor is it where the other way found a file damaged, or data
                that does not fit.
        """
        started = time.monotonic()
        row: dict[str, Any] = {
            "recipe": [{"name": each.name, **each.settings()} for each in recipe],
            "worker": f"{socket.gethostname()}:{os.getpid()}",
        }
        try:
            model, said = (self.compressed(recipe), {}) if make is None else make()
            row |= said
            costs, before = cost(model), cost(self.original)
            row |= {"macs": costs.macs / max(before.macs, 1), "size": costs.bytes}
            if self._outputs is not None:
                row["error"] = amount(self._outputs.drift(model, "the trial"))
                if make is None and (why := self._too_far(row["error"], tried)):
                    return {**row, "failed": why, "seconds": round(time.monotonic() - started, 2)}
            row |= self._accuracy(model)
            if self._latency_matters(row):
                row["latency"] = {self.machine: self.latency(model)}
        except NNCompressError as error:
            if isinstance(error, OutputError):  # no room: the recipe is not to blame
                raise
            if make is not None and isinstance(error, UsageError | ModelFileError | DataError):
                raise
            row["failed"] = error.what
        return {**row, "seconds": round(time.monotonic() - started, 2)}

    def _too_far(self, error: float, tried: Iterable[dict[str, Any]]) -> str:
        """Why outputs so far from the original's are not measured by the metric; empty where they are.

        Args:
            error: relative L2 distance, see `Drift.amount`.
        """
        if self.bounds.drop is None:
            return ""
        known = [row for row in tried if "samples" in row and "error" in row and "trained" not in row]
        given_up = [row for row in known if row["samples"] <= self._limits[0]]
        nearer = [row for row in given_up if FURTHER * row["error"] <= error]
        if len(nearer) < ENOUGH or any(FURTHER * row["error"] > error for row in known if self.holds(row)):
            return ""
        lost = f"{len(nearer)} trials that lost too much"
        return f"outputs are {error:.0%} away, {FURTHER:g} times as far as of {lost}"

    def _latency_matters(self, row: dict[str, Any]) -> bool:
        return self.bounds.timed and (self.bounds.drop is None or self.holds(row))

    def _accuracy(self, model: Model) -> dict[str, Any]:
        predict, output = open_artifact(model).run, known_answer(model)
        bound, row = self.bounds.drop, {}
        for limit, before in zip(self._limits, self._original):
            loss = lost(before, self._scores(predict, output, limit))
            row = {"lost": loss.value, "samples": loss.samples}
            if math.isfinite(loss.at_most()):
                row["at_most"] = loss.at_most()
            if bound is not None and (needed := loss.needed(bound)) is not None:
                row["needed"] = needed
            if bound is not None and loss.at_least(SURE) > bound:
                break
        return row

    def _scores(self, predict: Predict, output: int | None, limit: int | None) -> Scores:
        return self.measure.scores(predict, self._selection, output, limit)

    def latency(self, model: Model) -> dict[str, float]:
        """Of the model, in turns with the original; where that leaves open whether it is faster than the
        fastest so far (of this process, of those that hold the bound), in turns with that one, and longer.

        Raises:
            UnsupportedError: one of them cannot be exported for the target.
        """
        if self._latency is None:
            where, floats = clocked(self.bounds.target), self.bounds.ends_in
            self._latency = ModelLatency(self.original, self._context.progress, where, precision=floats)
            self._seconds = self._latency.seconds()
        assert self._seconds is not None
        share, best = self._latency.glance(model), self._fastest
        if best is not None and share.low <= best.high and best.low <= share.high:
            ratio, of = self._latency.beside(), best.value
            share = Estimate(of * ratio.value, of * ratio.low, of * ratio.high, ratio.confidence)
        if self.bounds.drop is not None and (best is None or share.value < best.value):
            self._latency.keep()
            self._fastest = share
        return {
            "share": share.value,
            "low": share.low,
            "high": share.high,
            "seconds": share.value * self._seconds,
        }

    def holds(self, row: dict[str, Any]) -> bool:
        """By the samples to choose by, with the confidence that the promise is to have: the bound on the
        metric. Where there is none, the bounds on size and latency."""
        if "samples" not in row:
            return False
        if self.bounds.drop is None:
            return self.within(row)
        return upper(row) <= self.bounds.drop

    def within(self, row: dict[str, Any]) -> bool:
        """The bounds on size and latency; a latency that was not measured on this machine holds none."""
        return self.excess(row) <= 1

    def excess(self, row: dict[str, Any]) -> float:
        """How many times the size or latency that is asked for it takes, of both the more; 0 where nothing
        is asked."""
        here = row.get("latency", {}).get(self.machine, {"seconds": math.inf})
        slow = 0.0 if self.bounds.latency is None else here["seconds"] / self.bounds.latency
        large = 0.0 if self.bounds.size is None else row["size"] / self.bounds.size
        found: float = max(slow, large)
        return found

    def goal(self, row: dict[str, Any]) -> float:
        """What is minimised."""
        if self.bounds.drop is None:
            return row["lost"]
        if self.bounds.goal == "latency":
            here = row.get("latency", {}).get(self.machine)
            return float("inf") if here is None else here["share"]
        return row[self.bounds.goal]
