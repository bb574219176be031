"""A budget of training spent on cuts that are too strong without it: distillation from the original.

    FOLDER/trained/data.json        which samples are learnt
    FOLDER/trained/KEY.json         how a trial is trained: settled by the speed of this machine, once
    FOLDER/trained/KEY.checkpoint   as far as the training came
    FOLDER/trained/KEY.pt2          the trained model, in float

Trials that miss the bound by least and are better by the goal are put in a row, weakest cut first; which of
them training saves is found by bisection, so `ROUNDS` trainings tell 2^ROUNDS − 1 candidates apart. Where a
size or latency is asked for that no trial reached, it is the weakest cut that does. A trained trial is one
like any other. What quantizes comes after the training.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nncompress import exporting, pipeline
from nncompress.analysis.answer import answer_index
from nncompress.data import Dataset
from nncompress.devices import processor
from nncompress.errors import UsageError, VerificationError
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.files.folders import make_folder
from nncompress.files.json_file import write_json
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.loading.json_schema import Check, Rejected, optional, plain, record
from nncompress.passes import Context, Quantize
from nncompress.progress import NullProgress
from nncompress.search.candidates import Recipe
from nncompress.search.records import data_key, key_of
from nncompress.train import TrainSettings, train
from nncompress.train.augment import Augmentation
from nncompress.train.loss.remembered import ASKING, room_for
from nncompress.train.precision import DTYPES
from nncompress.train.state import EPOCH

ROUNDS = 3  # trainings that the budget is spent on, at most
TIMED = 5  # steps by which the speed is told
AGAIN = 2  # epochs of these after the first
GAIN = 0.9  # of the time in 32 bits: training in 16 has to take less to be worth it
LABELLED = ("top1", "top5", "f1")  # metrics whose labels are in the loss, too
MOST_EPOCHS = 1000


def _settings(value: Any) -> dict[str, Any]:
    positive: Check = plain(int, lambda number: 0 < number < 2**31)
    entry = record(
        epochs=positive,
        limit=optional(positive),
        teacher_weight=plain(float),
        precision=optional(plain(str, lambda name: name in DTYPES)),
        crop=optional(positive),
        flip=optional(plain(bool)),
    )(value)
    if not 0 <= entry["teacher_weight"] <= 1:
        raise Rejected("a share of the teacher beyond 0 … 1")
    found: dict[str, Any] = {key: given for key, given in entry.items() if given is not None}
    return found


TRAINED = _settings


@dataclass(frozen=True)
class Training:
    """What is spent on training, and what images are shown.

    Attributes:
        seconds: for all of it.
        crop, flip: as in `TrainSettings`.
    """

    seconds: float
    crop: int = 0
    flip: bool = False

    @property
    def images(self) -> dict[str, Any]:
        """How they are changed, as settings of a training."""
        return {name: value for name in ("crop", "flip") if (value := getattr(self, name))}


def trained_key(recipe: Recipe, training: Training) -> str:
    """The name of the trial that trains this recipe so."""
    parts = [[each.name, each.settings()] for each in recipe]
    return key_of(parts, "trained", training.seconds, *([training.images] if training.images else []))


def in_two(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """What comes before the training, and what after."""
    first = next((i for i, each in enumerate(recipe) if isinstance(each, Quantize)), len(recipe))
    return recipe[:first], recipe[first:]


class Trainer:
    """Trains recipes of one search.

    Args:
        metric: what the search measures by.
        context: the data to train on, the seed.
    """

    def __init__(self, folder: Path, original: Model, metric: str, context: Context) -> None:
        self.folder = folder / "trained"
        self._original, self._context = original, context
        labelled = metric in LABELLED and context.data is not None and context.data.has_labels
        self._teacher_weight = 0.9 if labelled else 1.0

    def check_data(self, training: Training) -> None:
        """Refuse other samples than those of earlier trainings (a search knows those only that passes take),
        and changes of images where there are none.

        Raises:
            UsageError: they are others, or the record of them is damaged; no input is an image.
            MissingExtraError: what changes images is not installed.
        """
        if training.images:
            Augmentation(TrainSettings(**training.images), self._data())
        file, now = make_folder(self.folder) / "data.json", {"samples": data_key(self._data())}
        if not file.exists():
            write_json(file, now)
        try:
            same = read_json(file) == now
        except Unreadable:
            same = False
        if not same:
            raise UsageError(
                f"{self.folder} holds models that were trained on other samples than {self._data().spec}",
                remedy="name another --folder, or delete this one",
            )

    def settings(self, key: str, cut: Model, training: Training) -> dict[str, Any]:
        """How the trial `key` is trained: as it was settled before, else as many steps as the time allows."""
        file = make_folder(self.folder) / f"{key}.json"
        if not file.exists():
            always = {**training.images, "teacher_weight": self._teacher_weight}
            write_json(file, {**self._affordable(cut, training.seconds, always), **always})
        try:
            return TRAINED(read_json(file))
        except (Unreadable, Rejected) as error:
            raise UsageError(
                f"{file} does not say how to train", got=str(error), remedy="delete it"
            ) from error

    def trained(self, key: str, recipe: Recipe, training: Training) -> tuple[Model, dict[str, Any]]:
        """The model of a recipe, trained in between, and what its trial says of it; goes on where a killed
        one stopped.

        Raises:
            VerificationError: the training diverged.
        """
        before, _ = in_two(recipe)
        cut = self._run(self._original, before)
        settings = self.settings(key, cut, training)
        checkpoint = self.folder / f"{key}.checkpoint"
        model, _ = train(
            cut,
            self._data(),
            TrainSettings(**settings, seed=self._context.seed),
            teacher=self._original,
            checkpoint=checkpoint,
            resume=True,
            progress=self._context.progress,
        )
        exporting.write(model, self.folder / f"{key}.pt2")
        checkpoint.unlink(missing_ok=True)
        return self.model(key, recipe), {"trained": settings}

    def model(self, key: str, recipe: Recipe) -> Model:
        """Of a trial that was trained.

        Raises:
            ModelFileError: it is not there any more, or damaged.
        """
        return self._run(load_model(self.folder / f"{key}.pt2"), in_two(recipe)[1])

    def _run(self, model: Model, recipe: Recipe) -> Model:
        return pipeline.run(model, recipe, replace(self._context, notes=[], warnings=[]))[0]

    def _affordable(self, cut: Model, seconds: float, always: dict[str, Any]) -> dict[str, Any]:
        """Precision, epochs, and where one is too much the samples of one, by the time of a few steps."""
        data = self._data()
        batch = data.fixed_batch or TrainSettings().batch
        count = data.planned_samples() or len(data)
        began = time.monotonic()
        timed = {**always, "epochs": 1 + AGAIN, "limit": min(count, TIMED * batch)}
        speeds = {"fp32": self._speed(cut, {**timed, "precision": "fp32"})}
        if processor().bfloat16:
            with contextlib.suppress(VerificationError):  # it diverges in 16 bits
                speeds["bf16"] = self._speed(cut, {**timed, "precision": "bf16"})
        precision = min(speeds, key=lambda name: speeds[name][1] * (1 if name == "fp32" else 1 / GAIN))
        asked, later = (per_step * count / min(count, batch) for per_step in speeds[precision])
        if asked and not _keeps_answers(cut, self._data(), batch, count):
            asked, later = 0.0, asked + later
        seconds -= time.monotonic() - began
        settings: dict[str, Any] = {} if precision == "fp32" else {"precision": precision}
        if seconds < asked + later:
            steps = int(max(seconds, 0) / (asked + later) * count) // batch
            return {"epochs": 1, "limit": max(steps, 1) * batch, **settings}
        return {"epochs": min(int((seconds - asked) / later), MOST_EPOCHS), **settings}

    def _speed(self, cut: Model, settings: dict[str, Any]) -> tuple[float, float]:
        """Seconds in which the teacher answers to a batch that it is asked for once, and of a step; 0 and
        that of a step where every step asks it."""
        clock = _Clock()
        train(cut, self._data(), TrainSettings(**settings), teacher=self._original, progress=clock)
        return clock.between(ASKING), clock.between(EPOCH)

    def _data(self) -> Dataset:
        assert self._context.data is not None
        return self._context.data


def _keeps_answers(model: Model, data: Dataset, batch: int, samples: int) -> bool:
    """Whether a teacher's answers to all samples are kept, by the size of those of `model` to the first."""
    with torch.no_grad():
        outputs = model.graph_module(*next(data.batches(batch, batch)).inputs)
    return room_for(outputs[answer_index(model)], samples)


class _Clock(NullProgress):
    """When each step of a training was begun."""

    def __init__(self) -> None:
        self._begun: list[tuple[str, float]] = []

    def step(self, description: str, done: int, total: int | None) -> None:
        self._begun.append((description, time.monotonic()))

    def between(self, kind: str) -> float:
        """The median time from one step of a kind to the next one, of the same kind, in seconds; 0 where
        there are none."""
        taken = [
            later[1] - one[1]
            for one, later in itertools.pairwise(self._begun)
            if one[0].startswith(kind) and later[0].startswith(kind)
        ]
        return statistics.median(taken) if taken else 0.0


def bisected(candidates: list[str], seconds: float, holds: Callable[[str, float], bool]) -> None:
    """Try candidates, weakest first, until the strongest that holds is known, or `ROUNDS` are over.

    Each training has twice the time of the one before: the first ones tell where to spend it. One candidate
    has all of it.

    Args:
        seconds: for all trainings together.
        holds: trains one for so many seconds; True where it keeps the bound.
    """
    rounds = min(len(candidates).bit_length(), ROUNDS)
    low, high = 0, len(candidates)
    for done in range(rounds):
        if low >= high:
            return
        middle = (low + high) // 2
        kept = holds(candidates[middle], seconds * 2**done / (2**rounds - 1))
        low, high = (middle + 1, high) if kept else (low, middle)
