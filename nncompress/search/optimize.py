"""The smallest or fastest recipe that keeps its accuracy, found by any number of workers on one folder.

    FOLDER/original.pt2           the model
    FOLDER/search.json            how a worker opens data and model: written and read by the command
    FOLDER/started.json           what is searched for; a worker refuses a folder of another search
    FOLDER/sensitivity/KEY.json   what each layer bears
    FOLDER/trials/KEY.json        a recipe and what was measured of it; KEY is the hash of the recipe
    FOLDER/refinement.journal     what was proposed to be tried (`refine`)
    FOLDER/trained/               models of trials that were trained, and the digest of the data they learnt
    FOLDER/promises.json          which trials were held against the samples of the promise, in what order

One half of the data chooses, the other half promises: by the time the promise is made, its samples have
been seen by nobody, so that it holds however many recipes were tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nncompress.analysis.answer import known_answer
from nncompress.analysis.metrics.base import Scores
from nncompress.analysis.metrics.two_classes import assumption
from nncompress.analysis.observe.residual import find_branches
from nncompress.data import Dataset
from nncompress.errors import UsageError
from nncompress.files.json_file import write_json
from nncompress.ir import Model
from nncompress.loading.json_schema import listed, plain, record, table_with
from nncompress.passes import Context
from nncompress.runtimes import open_artifact
from nncompress.search import trial
from nncompress.search.candidates import Family, families, recipe_key
from nncompress.search.finetune import Trainer, Training, bisected, trained_key
from nncompress.search.layers.by_time import with_time
from nncompress.search.layers.sensitivity import Effect
from nncompress.search.layers_alone import clocked_layers, effects_alone, wanted_probes
from nncompress.search.loss import lost
from nncompress.search.measure import metric_key
from nncompress.search.promise import CONFIDENCE, Promise, nothing_held, upper
from nncompress.search.proposals import Proposals
from nncompress.search.records import WAIT, Records, data_key, model_key, read
from nncompress.search.refine import Refinement
from nncompress.search.trial import Bounds, Judge, recipe_of
from nncompress.search.worth_training import WorthTraining
from nncompress.version import __version__


class Search:
    """One worker's view of a search.

    Args:
        selection: samples to choose by.
        context: data to fit to, seed, limit.

    Raises:
        UsageError: the folder holds another search.
    """

    def __init__(
        self, folder: Path, original: Model, selection: Dataset, context: Context, bounds: Bounds
    ) -> None:
        self.folder, self.original, self.context, self.bounds = folder, original, context, bounds
        self.trials = Records(folder / "trials", trial.record)
        wanted = {
            "version": __version__,
            "model": model_key(original),
            "fitted": data_key(context.data, context.limit),
            "selection": data_key(selection),
            "limit": context.limit,
            "seed": context.seed,
            "bounds": asdict(bounds),
            "metric": metric_key(bounds.metric),
        }
        known = read(folder / "started.json", table_with())
        if known is None:
            write_json(folder / "started.json", wanted)
        elif known != wanted:
            other = next(key for key in wanted if known.get(key) != wanted[key])
            raise UsageError(
                f"{folder} holds another search",
                got=f"another {other}",
                remedy="name another --folder, or delete this one",
            )
        self.judge = Judge(original, selection, context, bounds)
        self.trainer = Trainer(folder, original, bounds.metric, context)
        self.effects: tuple[Effect, ...] = ()
        self.families: list[Family] = []
        self._unseen: Scores | None = None  # of the original on the unseen samples

    def run(
        self,
        most: int,
        until: float,
        told: Callable[[dict[str, Any]], None],
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Try recipes until so many trials are there, the time is over, or nothing is left to try.

        Args:
            until: `time.monotonic()` from which on no trial is begun.
            told: called with each trial of this worker.
            say: told in a sentence how it goes on.
        """
        if taken := assumption(self.judge.measure.threshold):
            say(taken)
        wanted = wanted_probes(self.original, self.bounds, self.context)
        methods = {probe.method for probe in wanted}
        by_time = self.bounds.timed and self.bounds.goal == "latency"
        unit, blocks = "params" if self.bounds.goal == "size" else "macs", len(find_branches(self.original))
        timed = (
            clocked_layers(self.original, self.bounds, self.context, say)
            if by_time and "quantize" in methods
            else None
        )

        def searched() -> list[Family]:
            found = families(methods, self.effects, unit, by_time, timed, blocks)
            self.families = [each for each in found if any(map(self.bounds.admits, each.recipes()))]
            return self.families

        # what is the same everywhere needs no measurement of single layers, which in a deep model take hours
        self._try(Proposals(self.judge, searched()), (most + 1) // 2, _half_way(until), told)
        if len(self._tried()) >= most or time.monotonic() >= until:
            return
        self.effects = effects_alone(
            self.original,
            wanted,
            self.context,
            self.bounds,
            self.folder / "sensitivity",
            _half_way(until),
            say,
        )
        if timed is not None:
            self.effects = with_time(self.effects, timed)
        refinement = Refinement(self.folder, self.judge, self.effects, self.context.seed, say, blocks)
        self._try(Proposals(self.judge, searched(), refinement), most, until, told)

    def _tried(self) -> dict[str, dict[str, Any]]:
        """Trials that are none of a training."""
        return {key: row for key, row in self.trials.all().items() if "trained" not in row}

    def _try(
        self, proposals: Proposals, most: int, until: float, told: Callable[[dict[str, Any]], None]
    ) -> None:
        while time.monotonic() < until:
            rows = self._tried()
            if len(rows) >= most:
                return
            tried = {key: (recipe_of(row), row) for key, row in rows.items()}
            recipes = proposals.next(tried, self.best(rows))
            if not recipes:
                return
            for recipe in recipes:
                key = recipe_key(recipe)
                with self.trials.claimed(key) as ours:
                    if not ours:
                        continue
                    self.context.progress.step("trials", len(rows), most)
                    row = self.judge.run(recipe, rows.values())
                    self.trials.put(key, row)
                told(row)
                break
            else:
                time.sleep(WAIT)  # others are at all of them

    def best(self, rows: dict[str, dict[str, Any]] | None = None) -> str | None:
        """The key of the trial to take; None where none holds the bounds."""
        rows = self.trials.all() if rows is None else rows
        held = [key for key, row in rows.items() if self.judge.holds(row) and self.judge.within(row)]
        return min(held, key=lambda k: (self.judge.goal(rows[k]), upper(rows[k]), k), default=None)

    def finetune(self, training: Training, told: Callable[[dict[str, Any]], None]) -> bool:
        """Train cuts that are too strong without it, and keep them as trials; see `finetune`.

        Returns: whether there was any.

        Raises:
            UsageError: earlier ones were trained on other data, or it is not known how.
        """
        self.trainer.check_data(training)

        def holds(key: str, seconds: float) -> bool:
            recipe, each = recipe_of(self.trials.get(key) or {}), replace(training, seconds=seconds)
            name = trained_key(recipe, each)
            with self.trials.claimed(name) as ours:
                if ours:
                    row = self.judge.run(recipe, make=lambda: self.trainer.trained(name, recipe, each))
                    self.trials.put(name, row)
                    told(row)
            return self.judge.holds(self.trials.get(name) or {})

        worth = WorthTraining(self.judge, self.trials, self.families, told)
        candidates = worth.found(self.best(self._tried()))
        bisected(candidates, training.seconds, holds)
        return bool(candidates)

    def _model(self, key: str, row: dict[str, Any]) -> Model:
        recipe = recipe_of(row)
        return self.trainer.model(key, recipe) if "trained" in row else self.judge.compressed(recipe)

    def measure_here(self) -> None:
        """Latencies of trials that hold the bound and were measured on other machines only."""
        if not self.bounds.timed:
            return
        for key, row in self.trials.all().items():
            if self.judge.machine not in row.get("latency", {self.judge.machine: None}):
                model = self._model(key, row)
                row["latency"][self.judge.machine] = self.judge.latency(model)
                self.trials.put(key, row)

    def sequence(self) -> list[str]:
        """The trials to hold against unseen samples, in order: the safest first, then every one that is
        better and less safe; trained ones last, since they may have learnt the samples to choose by."""
        rows = self.trials.all()
        held = [key for key, row in rows.items() if self.judge.holds(row) and self.judge.within(row)]
        found: list[str] = []
        for key in sorted(
            held, key=lambda k: ("trained" in rows[k], upper(rows[k]), self.judge.goal(rows[k]), k)
        ):
            if not found or self.judge.goal(rows[key]) < self.judge.goal(rows[found[-1]]):
                found.append(key)
        return found if self.bounds.drop is not None else found[:1]

    def promise(self, unseen: Dataset) -> tuple[str, Model, Promise]:
        """The best trial that keeps the bound on samples that nothing was chosen by; else the safest.

        Tested in the order of `sequence` up to the first that fails, each at 95 %: since the order was
        settled without these samples, the confidence holds for whichever is taken (fixed-sequence testing).

        Raises:
            PromiseError: no trial holds the bounds on the samples to choose by.
        """
        wanted = self.sequence()
        if not wanted:
            rows = [row for row in self.trials.all().values() if "samples" in row]
            within = [row for row in rows if self.judge.within(row)]
            metric = self.judge.measure.metric
            raise nothing_held(rows, within, self.bounds.drop, metric, len(self.effects))
        asked = read(self.folder / "promises.json", PROMISES) or {"sequences": []}
        if wanted not in asked["sequences"]:
            asked["sequences"].append(wanted)
            write_json(self.folder / "promises.json", asked)
        looks = asked["sequences"].index(wanted) + 1
        taken: tuple[str, Model, Promise] | None = None
        for key in wanted:
            model = self._model(key, self.trials.get(key) or {})
            made = self.promised(model, unseen, looks)
            if taken is None or made.kept:
                taken = key, model, made
            if not made.kept:
                break
        assert taken is not None
        return taken

    def promised(self, artifact: Path | Model, unseen: Dataset, looks: int) -> Promise:
        """One result against samples that nothing was chosen by, its confidence made up for `looks`."""
        # so that the errors of all later looks together are no more than half of the first one's
        confidence = CONFIDENCE if looks == 1 else 1 - (1 - CONFIDENCE) / 2**looks
        output, measure = known_answer(self.original), self.judge.measure
        if self._unseen is None:
            self._unseen = measure.scores(open_artifact(self.original).run, unseen, output)
        after = measure.scores(open_artifact(artifact).run, unseen, output)
        loss = lost(self._unseen, after)
        bound, high = self.bounds.drop, loss.at_most(confidence)
        return Promise(
            metric=measure.name,
            samples=loss.samples,
            original=self._unseen.value,
            changed=after.value,
            drop=loss.value,
            low=loss.at_least(confidence),
            high=high,
            interval=loss.how,
            confidence=confidence,
            bound=bound,
            kept=bound is None or high <= bound,
            needed=None if bound is None else loss.needed(bound, confidence),
            looks=looks,
        )


PROMISES = record(sequences=listed(listed(plain(str))))


def _half_way(until: float) -> float:
    """When half of the time from now on is over."""
    return time.monotonic() + (until - time.monotonic()) / 2
