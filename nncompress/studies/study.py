"""What every study gives: rows that hold the paper's number beside ours, over several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from nncompress.errors import UsageError
from nncompress.extras import need
from nncompress.files.atomic import replacing
from nncompress.files.ledger import Ledger
from nncompress.files.targets import check_target
from nncompress.progress import NullProgress, Progress
from nncompress.results import Result


@dataclass(frozen=True)
class Trial:
    """One seed. nodes: per hidden layer; trace: (cycle, nodes in all, loss) of every cycle."""

    seed: int
    nodes: tuple[int, ...]
    loss: float
    cycles: int
    trace: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True)
class Row:
    """One way of doing it.

    Attributes:
        paper: what the paper reports for it, in its words; "" where it says nothing.
    """

    name: str
    paper: str
    trials: tuple[Trial, ...]

    @property
    def losses(self) -> list[float]:
        return [trial.loss for trial in self.trials]

    def mean_nodes(self) -> tuple[float, ...]:
        """Mean over the seeds, per layer."""
        return tuple(statistics.fmean(layer) for layer in zip(*(t.nodes for t in self.trials)))

    def loss_spread(self) -> float:
        """Sample standard deviation of the loss over the seeds; 0 for a single one."""
        return statistics.stdev(self.losses) if len(self.trials) > 1 else 0.0


@dataclass(frozen=True)
class StudyResult(Result):
    """All rows of a study. verdict: whether the paper's result was reached, in one sentence."""

    kind: ClassVar[str] = "study"

    study: str
    rows: tuple[Row, ...]
    verdict: str
    seconds: float

    def draw(self, pyplot: Any) -> Any:
        """Nodes and loss over the cycles, one line per trial."""
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
        for number, row in enumerate(self.rows):
            for position, trial in enumerate(row.trials):
                if not trial.trace:
                    continue
                cycles, nodes, losses = zip(*trial.trace)
                style: dict[str, Any] = {"color": f"C{number}", "alpha": 0.7, "marker": ".", "lw": 1}
                label = row.name if position == 0 else None
                axes[0].plot(cycles, nodes, label=label, **style)
                axes[1].plot(cycles, losses, label=label, **style)
        for axis, title in zip(axes, ("hidden nodes", "loss (RMSE)")):
            axis.set(xlabel="cycle", title=title, yscale="log")
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
        figure.suptitle(self.study)
        return figure


class Drawable(Protocol):
    """A result with curves: `draw` makes a figure of matplotlib."""

    def draw(self, pyplot: Any) -> Any: ...


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        folder: for files; what is found there is gone on with, where the user keeps it.
        runs: seeds.
        epochs: of training, instead of the paper's own budget.
        data: as `--data`.
        model: a trained model to study, instead of one that is trained for it.
    """

    folder: Path
    runs: int | None = None
    epochs: int | None = None
    quick: bool = False
    data: str | None = None
    model: str | None = None
    seed: int = 0
    progress: Progress = field(default_factory=NullProgress)
    say: Callable[[str], None] = lambda sentence: None

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Gives a path to write a file of the folder to; one of that name that is the user's is refused.

        Raises:
            OutputError: a file of that name is there that no study wrote; or it cannot be written.
        """
        return Ledger(self.folder).writing(name)


@dataclass(frozen=True)
class Study:
    """A study by name.

    Attributes:
        summary: one line on it.
        needs_data: it does not run without `--data`.
        takes: what else it takes of `plot`, `data`, `runs`, `epochs`, `keep` and `model`; all take `quick`
            and `seed`.
        for_data: what it takes only where there is data to train on.
        for_training: what it takes only where no `--model` is given, which needs no training.
    """

    name: str
    summary: str
    needs_data: bool
    run: Callable[[Request], Result]
    takes: tuple[str, ...] = ("plot", "runs")
    for_data: tuple[str, ...] = ()
    for_training: tuple[str, ...] = ()

    def refuse_unused(self, given: Collection[str]) -> None:
        """Refuse options that would change nothing.

        Args:
            given: the names of the options that the user gave.

        Raises:
            UsageError: naming the first.
        """
        takes = {*self.takes, "seed", "quick", *(("data",) if self.needs_data else ())}
        for option in given:
            if option not in takes:
                raise UsageError(f"reproduce: {self.name} takes no --{option}", remedy="leave it out")
            if option in self.for_data and "data" not in given:
                raise UsageError(
                    f"reproduce: {self.name} without data trains nothing, so --{option} has no effect",
                    remedy=f"add --data, or leave --{option} out",
                )
            if option in self.for_training and "model" in given:
                raise UsageError(
                    f"reproduce: {self.name} with --model trains nothing, so --{option} has no effect",
                    remedy=f"leave --{option} out",
                )


def check_plot(path: Path, protect: Iterable[Path] = ()) -> None:
    """Refuse a plot that could not be drawn, before the hours that its study takes.

    Args:
        protect: what the study reads.

    Raises:
        UsageError: its suffix names no format.
        MissingExtraError: matplotlib is not installed.
        OutputError: the folder is missing or may not be written to.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError("reproduce: --plot has another suffix", got=str(path), expected=".png or .svg")
    need("studies", "reproduce --plot")
    check_target(path, protect)


def plot(result: Drawable, path: Path) -> None:
    """The curves of a study, as PNG or SVG by the file's suffix.

    Raises:
        UsageError, MissingExtraError, OutputError: see `check_plot`; or the file cannot be written.
    """
    check_plot(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = result.draw(pyplot)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
