"""What the studies of growth share: trainings that may grow, their curves, and steps timed in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import torch

from nncompress.benchmarking.measure import Measurement, undisturbed
from nncompress.benchmarking.stats import speedup
from nncompress.data import Batch, Dataset
from nncompress.errors import UsageError
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.files.json_file import write_json
from nncompress.ir import Model
from nncompress.progress import NullProgress
from nncompress.results import Estimate, Result
from nncompress.studies.study import Request
from nncompress.train import GrowSettings, TrainSettings, train
from nncompress.train.checkpoint import weights_digest
from nncompress.train.run import Run


@dataclass(frozen=True)
class Point:
    """After an epoch: steps and seconds of training so far (validation and growth included), the measure, and
    whether the network grew then."""

    step: int
    seconds: float
    measure: float
    grown: bool = False


@dataclass(frozen=True)
class GrowthTrial:
    """One seed.

    Attributes:
        parameters: in the end; growths: how often it grew.
        measure: of the trained network, on samples that decided nothing.
        seconds: of the processor (all threads) for training, validation and growth; on a GPU, of the wall.
    """

    seed: int
    parameters: int
    growths: int
    measure: float
    seconds: float
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class GrowthRow:
    """One way of training. paper: its own figure, in its words; "" where it gives none."""

    name: str
    paper: str
    trials: tuple[GrowthTrial, ...]

    @property
    def measures(self) -> list[float]:
        return [trial.measure for trial in self.trials]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.measures)

    @property
    def spread(self) -> float:
        """Sample standard deviation over the seeds; 0 for one."""
        return statistics.stdev(self.measures) if len(self.trials) > 1 else 0.0

    @property
    def seconds(self) -> float:
        return statistics.fmean(trial.seconds for trial in self.trials)


@dataclass(frozen=True)
class Ratio:
    """A time of ours over another. paper: the paper's."""

    name: str
    paper: str
    value: Estimate


@dataclass(frozen=True)
class GrowthResult(Result):
    """All rows of a study of growth.

    Attributes:
        measure: "RMSE" or "top-1 %".
        budget: what was trained on, and for how long, in words.
        verdict: what follows, one sentence.
    """

    kind: ClassVar[str] = "growth"

    study: str
    measure: str
    rows: tuple[GrowthRow, ...]
    ratios: tuple[Ratio, ...]
    budget: str
    verdict: str
    seconds: float

    def draw(self, pyplot: Any) -> Any:
        """The learning curves, against steps and against seconds."""
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
        for number, row in enumerate(self.rows):
            for position, trial in enumerate(row.trials):
                style = {"color": f"C{number}", "alpha": 0.6, "lw": 1}
                values = [point.measure for point in trial.curve]
                label = row.name if position == 0 else None
                for axis, along in zip(axes, ("step", "seconds")):
                    at = [getattr(point, along) for point in trial.curve]
                    axis.plot(at, values, label=label, **style)
                    grown = [(x, y) for x, y, p in zip(at, values, trial.curve) if p.grown]
                    if grown:
                        axis.plot(*zip(*grown), "o", ms=4, color=f"C{number}")
        for axis, label in zip(axes, ("steps", "seconds of training")):
            axis.set(xlabel=label, yscale="log" if self.measure == "RMSE" else "linear")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(self.measure)
        axes[0].legend(fontsize=8)
        figure.suptitle(f"{self.study} (a dot: the network grew)")
        return figure


def trial(
    request: Request,
    name: str,
    model: Model,
    data: Dataset,
    validation: Dataset,
    settings: TrainSettings,
    growth: GrowSettings | None,
    measure: Callable[[dict[str, float]], float],
    final: Callable[[Model], float] | None = None,
) -> GrowthTrial:
    """Train and keep the curve; one that the request's folder has already is taken from there.

    Args:
        name: of the file in the folder, with seed and epochs.
        measure: of a row of validation.
        final: of the trained model; without it, the last of the curve.

    Raises:
        UsageError: the folder holds it from another training.
    """
    path = request.folder / f"{name}-{settings.seed}-{settings.epochs}.json"
    made = {
        "network": weights_digest(model),
        "data": f"{len(data)} of {data.spec}",
        "settings": settings.settings(),
        "growth": None if growth is None else growth.settings(),
    }
    if path.exists():
        return _kept(path, made)
    clock = time.monotonic if torch.cuda.is_available() else time.process_time
    started = clock()
    trained, result = train(
        model, data, settings, validation=validation, growth=growth, progress=request.progress
    )
    seconds = round(clock() - started, 1)
    curve = tuple(
        Point(row["step"], row["seconds"], measure(row["validation"]), "grown" in row)
        for row in result.epochs
    )
    parameters = sum(p.numel() for p in trained.graph_module.parameters())
    value = curve[-1].measure if final is None else final(trained)
    found = GrowthTrial(settings.seed, parameters, sum(p.grown for p in curve), value, seconds, curve)
    write_json(path, {"of": made, "trial": asdict(found)})
    return found


def _kept(path: Path, made: dict[str, Any]) -> GrowthTrial:
    """What an earlier run left.

    Raises:
        UsageError: it is of another training, or no such file at all.
    """
    try:
        kept = read_json(path)
        found = {**kept["trial"], "curve": tuple(Point(**point) for point in kept["trial"]["curve"])}
        if kept["of"] == made:
            return GrowthTrial(**found)
        got = str(kept["of"])
    except Unreadable as error:
        got = str(error)
    except (KeyError, TypeError) as error:
        got = f"a file that is no such record ({type(error).__name__})"
    raise UsageError(
        f"{path} is of another training",
        got=got,
        expected=str(made),
        remedy="another --keep, or the options of the first run",
    )


def step_time(
    one: tuple[Model, GrowSettings | None],
    other: tuple[Model, GrowSettings | None],
    data: Dataset,
    settings: TrainSettings,
    *,
    rounds: int,
    sessions: int,
) -> Estimate:
    """How many times as long a step of `other` takes: in turns, on one thread, by CPU time.

    A run that may grow looks for a plateau after every step here, not only after every epoch.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: list[list[list[int]]] = [[], []]
    try:
        for session in range(sessions):
            calls = [_steps(*each, data, settings) for each in (one, other)]
            measured = Measurement(calls, seed=session, by_cpu=True)
            with undisturbed(), torch.random.fork_rng(devices=()):
                measured.warm_up()
                for _ in range(rounds):
                    measured.round()
            for kept, candidate in zip(times, measured.times):
                kept.append(candidate.cpu_ns)
    finally:
        torch.set_num_threads(threads)
    return speedup(times[1], times[0])


def _steps(
    model: Model, growth: GrowSettings | None, data: Dataset, settings: TrainSettings
) -> Callable[[], object]:
    run = Run(model, data, settings, None, None, NullProgress(), growth)

    def batches() -> Iterator[Batch]:
        for epoch in count():
            yield from data.batches(run.batch_size, settings.limit, epoch)

    stream = batches()

    def step() -> None:
        run.step(next(stream))
        run.state.step = 0  # the rate of the first step, again and again
        if run.growing is not None:
            run.growing.due(run.state.loss_sum / run.state.samples)

    return step


def difference(first: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The mean of `other` less that of `first`, and its standard error over the seeds (nan for one)."""
    mean = statistics.fmean(other) - statistics.fmean(first)
    if min(len(first), len(other)) < 2:
        return mean, math.nan
    squares = statistics.variance(first) / len(first) + statistics.variance(other) / len(other)
    return mean, math.sqrt(squares)
