"""The cycles themselves: train, judge, prune, and again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from nncompress import pipeline
from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings
from nncompress.analysis.importance.choices import group_choices
from nncompress.cycles.folder import FORMAT, Folder, State
from nncompress.cycles.result import Cycle, CycleResult
from nncompress.cycles.settings import CycleSettings
from nncompress.data import Dataset
from nncompress.errors import NNCompressError, UsageError
from nncompress.files.folders import folder_to_fill
from nncompress.files.lock import alone_in
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.options import Options
from nncompress.passes import Context, Grow, Pass, Prune, PruneNodes
from nncompress.progress import NullProgress, Progress
from nncompress.train import TrainResult, TrainSettings, checkpoint, train
from nncompress.train.loss.validation import first_task, validate


def cubic_sparsity(final: float, cycle: int, cycles: int) -> float:
    """s (1 − (1 − t/n)³): fast at first, slow near the end (Zhu & Gupta 2017). `cycle` counts from 1."""
    return final * (1 - (1 - cycle / cycles) ** 3)


def distort(model: Model, seed: int) -> None:
    """Add rand · max(0, 1 − var(w)), rand in [0, 1), to every weight and bias of the layers.

    Çallı's draft, §2.2.2. All nodes are pushed the same way, so training pushes them all back, and those that
    it pushes too far never fire again. Zeros that pruning made stay zero.
    """
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    for layer in layers(model):
        for weight in (layer.weight, layer.bias):
            if weight is None or id(model.tensor(weight.name)) in seen:
                continue
            seen.add(id(model.tensor(weight.name)))
            value = weight.value()
            spread = float(value.var(correction=0))
            noise = torch.rand(value.shape, generator=generator) * max(0.0, 1 - spread)
            weight.assign(value + noise * (value != 0) if layer.weight is weight else value + noise)


def nodes(model: Model, names: Iterable[str] = ()) -> dict[str, int]:
    """How many nodes each group of removable nodes has; groups of `names` that are no more have one left."""
    return dict.fromkeys(names, 1) | {group.name: group.size for group in find_couplings(model).groups}


def run_cycles(
    model: Model,
    dataset: Dataset,
    training: TrainSettings,
    settings: CycleSettings,
    *,
    folder: Path,
    validation: Dataset | None = None,
    teacher: Model | None = None,
    resume: bool = False,
    done: Callable[[Cycle], None] | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> tuple[Model, CycleResult]:
    """Train and prune a copy of `model` in cycles, and return it trained.

    Args:
        folder: made if missing, and must hold nothing but an earlier run of this. `cycles.jsonl` has a line
            per cycle; the rest is there to resume from.
        validation: its loss is what `max_loss` bounds, where given.
        teacher: imitated in every cycle, e.g. the original.
        done: called after every cycle.
        notice: called with which loss is minimised, and why.

    Raises:
        UsageError: `folder` holds other files, or the cycles of another run.
        OutputError: it cannot be written, or another process is at it.
        NNCompressError: as `train` and the passes raise them.
    """
    with folder_to_fill(folder) as made, alone_in(made):
        return _Cycles(
            model, dataset, training, settings, made, validation, teacher, resume, done, progress, notice
        ).run()


class _Cycles:
    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        training: TrainSettings,
        settings: CycleSettings,
        folder: Path,
        validation: Dataset | None,
        teacher: Model | None,
        resume: bool,
        done: Callable[[Cycle], None] | None,
        progress: Progress | None,
        notice: Callable[[str], None] | None,
    ) -> None:
        self.dataset, self.validation, self.teacher = dataset, validation, teacher
        self.training, self.settings = training, settings
        self.done, self.progress, self.notice = done, progress or NullProgress(), notice
        self.history, self.groups = list(model.history), list(nodes(model))
        self.identity = {
            "format": FORMAT,
            "training": _plain(training),
            "cycle": _plain(settings),
            **checkpoint.data_identity("data", dataset),
            **checkpoint.data_identity("validation", validation),
            "model": checkpoint.weights_digest(model),
            "teacher": None if teacher is None else checkpoint.weights_digest(teacher),
        }
        self.folder = Folder(folder)
        self.state = self.folder.stored(self.identity) if resume else State()
        if not self.state.current:
            self.folder.check()
        self.folder.tidy(self.state)  # a run may have been killed before it did
        if not self.state.current:
            self._check(model)
            self.folder.keep_model("start.pt2", model)
            self.state.current = "start.pt2"
            self.folder.keep_state(self.identity, self.state)

    def _check(self, model: Model) -> None:
        """Refuse what no cycle can prune before one has trained.

        Raises:
            NNCompressError: as the pass would.
        """
        if self.settings.sparsity is None:
            choices = group_choices(model, find_couplings(model))
            if not choices:  # it only trains
                return
            if all(choice.excluded(self.settings.exclude) for choice in choices):
                raise UsageError(
                    "cycle: no nodes can be removed",
                    got="every node is fixed or excluded",
                    remedy="fewer --exclude; nncompress inspect --units shows the nodes",
                )
        pipeline.check(model, [self._pass(1)], self._context(1))

    def run(self) -> tuple[Model, CycleResult]:
        while not self.state.stopped:
            try:
                self._cycle()
            except NNCompressError:  # the data, or what was asked for, was refused
                if not self.state.rows and not (self.folder.path / _checkpoint(1)).exists():
                    self.folder.forget()
                raise
        model = self.folder.model(self.state.best or self.state.current)
        cycles = tuple(Cycle(**row) for row in self.state.rows)
        result = CycleResult(cycles, nodes(model, self.groups), self.state.best_loss, self.state.stopped)
        record: dict[str, Any] = {
            "pass": "cycle",
            "settings": self.settings.settings(),
            "training": self.training.settings(),
            "cycles": result.prunings,
            "nodes": result.nodes,
        }
        model.history[:] = [*self.history, record]
        return model, result

    def _cycle(self) -> None:
        """Train the current model, judge it, and prepare the next."""
        state, settings = self.state, self.settings
        number = len(state.rows) + 1
        started = time.monotonic()
        kept = _checkpoint(number)
        trained, result = train(
            self.folder.model(state.current),
            self.dataset,
            replace(self.training, seed=self.training.seed + number),
            validation=self.validation,
            teacher=self.teacher,
            checkpoint=self.folder.path / kept,
            resume=True,
            progress=self.progress,
            notice=self.notice if number == 1 else None,
        )
        self.folder.ledger.adopt(kept)
        loss, held_out = self._measure(trained, result)
        good = settings.max_loss is None or loss <= settings.max_loss or not state.best
        better = loss < state.best_loss if state.retried else good
        if better:
            name = f"trained-{number}.pt2"
            self.folder.keep_model(name, trained)
            state.best, state.best_loss = name, loss
        removed, added = self._next(trained, number, good)
        row = Cycle(
            number,
            nodes(trained, self.groups),
            loss,
            held_out,
            len(result.epochs),
            removed,
            better,
            round(time.monotonic() - started, 2),
            added,
        )
        state.rows.append(asdict(row))
        self.folder.keep_state(self.identity, self.state)
        self.folder.tidy(self.state)
        if self.done is not None:
            self.done(row)

    def _next(self, trained: Model, number: int, good: bool) -> tuple[int, int]:
        """Set `current` (or `stopped`); returns how much was pruned, and how many nodes were added."""
        state, settings = self.state, self.settings
        last = number - state.retried > settings.max_cycles
        pruned, removed, added = trained, 0, 0
        if not state.retried and not last:
            if not good:  # back to the last good model, and half as far
                before = sum(state.rows[-1]["nodes"].values())
                state.ratio = (state.ratio or state.rows[-1]["pruned"] / before) / 2
                trained = self.folder.model(state.best)
            pruned, removed = self._prune(trained, number)
            if settings.grow != "never":
                pruned, added = self._grow(pruned, number)
        if removed or added:
            self._begin(pruned, number, distorted=settings.distort)
        elif state.retried < settings.retries:
            state.retried += 1
            self._begin(self.folder.model(state.best), number, distorted=True)
        else:
            ended = "the loss allows no fewer nodes" if state.ratio else "nothing left to prune"
            state.stopped = "max cycles" if last else ended
        return removed, added

    def _begin(self, model: Model, number: int, *, distorted: bool) -> None:
        if distorted:
            distort(model, self.training.seed + number)
        self.folder.keep_model(f"pruned-{number}.pt2", model)
        self.state.current = f"pruned-{number}.pt2"

    def _prune(self, model: Model, number: int) -> tuple[Model, int]:
        settings = self.settings
        if settings.sparsity is None and not nodes(model):
            return model, 0
        pruned, (step,) = pipeline.run(model, [self._pass(number)], self._context(number))
        if settings.sparsity is not None:
            return pruned, sum(c.numbers["zeros"] - c.numbers["zeros_before"] for c in step.changes)
        return pruned, sum(len(c.numbers.get("removed", ())) for c in step.changes if c.applied)

    def _context(self, number: int) -> Context:
        return Context(
            data=self.dataset,
            seed=self.training.seed + number,
            progress=self.progress,
            limit=self.settings.samples,
            batch_size=self.training.batch,
        )

    def _grow(self, model: Model, number: int) -> tuple[Model, int]:
        """Use what pruning has left of the budget where nodes are needed."""
        settings, now = self.settings, cost(model)
        macs = None if settings.max_macs is None else settings.max_macs / now.macs
        params = None if settings.max_params is None else settings.max_params / now.parameters
        if min(x for x in (macs, params) if x is not None) <= 1:
            return model, 0
        assert settings.grow != "never"
        growth = Grow(macs=macs, params=params, where=settings.grow, exclude=settings.exclude)
        grown, (step,) = pipeline.run(model, [growth], self._context(number))
        return grown, sum(c.numbers["added"] for c in step.changes if c.applied)

    def _pass(self, number: int) -> Pass:
        settings = self.settings
        if settings.sparsity is not None:
            share = cubic_sparsity(settings.sparsity, number, settings.max_cycles)
            return Prune(sparsity=share, exclude=settings.exclude)
        how: dict[str, Any] = {"outliers": settings.outliers, "ratio": settings.ratio}
        if settings.threshold is not None:  # prune-nodes removes what is below, the papers also what is at it
            how["threshold"] = math.nextafter(settings.threshold, math.inf)
        if self.state.ratio is not None:
            how = {"ratio": self.state.ratio}
        return PruneNodes(
            criterion=settings.criterion,
            compensate=settings.compensate,
            renormalize=settings.compensate,
            exclude=settings.exclude,
            **how,
        )

    def _measure(self, trained: Model, result: TrainResult) -> tuple[float, dict[str, float]]:
        """The task's loss without penalties, on the held-out data where there is any; where labels have no
        share in it and --metric is all that is measured there, the loss of the training."""
        if result.validation:
            return result.validation.get("loss", result.loss), result.validation
        task = first_task(trained, self.dataset, self.training)
        limit, batch = self.settings.samples, self.training.batch
        return validate(
            trained.outputs_of, self.dataset, task, batch, torch.device("cpu"), self.progress, limit
        )["loss"], {}


def _checkpoint(cycle: int) -> str:
    return f"train-{cycle}.checkpoint"


def _plain(options: Options) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}
