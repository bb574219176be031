"""Strengths, ranks and bits around the best recipe: one more or less by itself, and in turns with these many
at once, as Optuna proposes: by tree-structured Parzen estimators of what is good and what is not (Bergstra et
al. 2011), the goal under the bounds as constraints. What single ones did, it learns from.

    FOLDER/refinement.journal     what was proposed, so that several workers do not propose the same

The results in FOLDER/trials remain the only truth: what was measured is told to Optuna from these files, what
was proposed and has no file is proposed again, and without the journal it is written anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nncompress import extras
from nncompress.files.lock import alone_in
from nncompress.search.candidates import Recipe
from nncompress.search.layers.sensitivity import Effect
from nncompress.search.neighbourhood import Neighbourhood, settled_key
from nncompress.search.records import key_of
from nncompress.search.trial import Judge

EXTRA = "search"
JOURNAL = "refinement.journal"
AGAIN = 32  # proposals in a row that were measured already, before nothing is left to propose
STARTUP = 8  # trials near the best, before which a few settings at random are moved by a step or two
WAIT = 120.0  # seconds for another worker to end its proposal
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, AssertionError)  # from a journal that is none


class Refinement:
    """What to try when the families are settled.

    Args:
        folder: of the search.
        seed: proposals are the same for the same seed and results.
        say: told in a sentence how it goes on.
        blocks: how many residual blocks the original has.
    """

    def __init__(
        self,
        folder: Path,
        judge: Judge,
        effects: Sequence[Effect],
        seed: int,
        say: Callable[[str], None],
        blocks: int = 0,
    ) -> None:
        self._folder, self._judge, self._effects, self._seed = folder, judge, effects, seed
        self._say, self._blocks = say, blocks
        self._by_optuna = extras.installed(EXTRA)
        self._told = False

    def recipes(self, best: Recipe, rows: Mapping[str, tuple[Recipe, dict[str, Any]]]) -> list[Recipe]:
        """The next to try, those first that another worker may have left; empty where nothing is left.

        Args:
            rows: recipe and result of every trial by its key.
        """
        known = {settled_key(recipe): row for recipe, row in rows.values()}
        near = Neighbourhood(best, self._effects, self._blocks)
        saving = self._judge.bounds.drop is not None
        steps = list(near.steps(saving))
        if saving and not steps:
            return []  # all in int8, and nothing else: what is near only gives back
        if not self._told:
            self._told = True
            how = (
                ", and in turns jointly as Optuna proposes"
                if self._by_optuna
                else f"; with Optuna ({extras.command(EXTRA)}) jointly"
            )
            self._say(f"strengths of the best are varied one by one{how}")
        single = [each for each in steps if settled_key(each) not in known]
        if not self._by_optuna or (single and len(rows) % 2):
            return single
        return self._proposed(near, best, rows, known) or single

    def _proposed(
        self,
        near: Neighbourhood,
        best: Recipe,
        rows: Mapping[str, tuple[Recipe, dict[str, Any]]],
        known: Mapping[str, dict[str, Any]],
    ) -> list[Recipe]:
        if not near.values:
            return []
        with alone_in(self._folder, "refinement.lock", wait=WAIT) as alone:
            if alone:  # what a killed worker left, for which Optuna would wait half a minute
                (self._folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
            try:
                return self._asked(near, best, rows, known)
            except DAMAGED as error:
                (self._folder / JOURNAL).unlink(missing_ok=True)
                self._say(f"{self._folder / JOURNAL} is damaged ({error!r}): begun anew from the trials")
                return self._asked(near, best, rows, known)

    def _asked(
        self,
        near: Neighbourhood,
        best: Recipe,
        rows: Mapping[str, tuple[Recipe, dict[str, Any]]],
        known: Mapping[str, dict[str, Any]],
    ) -> list[Recipe]:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in near.values.items()
        }
        file = str(self._folder / JOURNAL)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file))),
            study_name=key_of(  # of the settings, too: another worker may have measured other layers
                settled_key(best), self._judge.machine if self._judge.bounds.timed else "", near.values
            ),
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )
        told, pending, measured = set(), [], 0
        for trial in study.get_trials(deepcopy=False):
            key = settled_key(near.recipe(trial.params))
            if trial.state == TrialState.COMPLETE:
                told.add(key)
            elif trial.state == TrialState.RUNNING:
                if key in known:  # what came of it is told below, whoever measured it
                    study.tell(trial.number, state=TrialState.FAIL)
                else:
                    pending.append(near.recipe(trial.params))
        for recipe, row in rows.values():
            positions = near.positions(recipe)
            measured += positions is not None
            if positions is None or settled_key(recipe) in told:
                continue
            if (result := self._result(row)) is not None:
                value, constraints = result
                study.add_trial(
                    optuna.trial.create_trial(
                        params=positions, distributions=space, value=value, constraints=constraints
                    )
                )
        for _ in range(AGAIN):
            number = len(study.get_trials(deepcopy=False))
            seed = int(key_of(self._seed, study.study_name, number)[:8], 16)
            study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)
            if measured < STARTUP:  # in so many dimensions what is random throughout is near nothing
                study.enqueue_trial(near.moved(random.Random(seed)))
            asked = study.ask(space)
            recipe = near.recipe(asked.params)
            if recipe and settled_key(recipe) not in known and recipe not in pending:
                return [*pending, recipe]
            study.tell(asked, state=TrialState.FAIL)
        return pending

    def _result(self, row: Mapping[str, Any]) -> tuple[float, dict[str, float]] | None:
        """Goal and by how much each bound is broken (0 and less: it holds); None where this machine has not
        measured it."""
        bounds = self._judge.bounds
        if "samples" not in row:
            return 0.0, {"failed": 1.0}
        broken = {}
        if bounds.drop is not None:
            broken["drop"] = row.get("at_most", row["lost"] + 1) - bounds.drop
        if bounds.size is not None:
            broken["size"] = row["size"] / bounds.size - 1
        here = row.get("latency", {}).get(self._judge.machine)
        if bounds.latency is not None and here is not None:
            broken["latency"] = here["seconds"] / bounds.latency - 1
        if any(value > 0 for value in broken.values()):
            return 0.0, broken  # by what is broken alone: latency was not measured
        goal = self._judge.goal(dict(row))
        return (goal, broken) if goal < float("inf") else None
