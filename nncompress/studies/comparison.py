"""Networks side by side: size, work, accuracy and time, with the paper's figures beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nncompress.analysis.accuracy import evaluate, evaluate_paired
from nncompress.analysis.cost import cost
from nncompress.benchmarking import Candidate, benchmark
from nncompress.data import Dataset
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.results import Estimate, Result
from nncompress.runtimes import open_artifact
from nncompress.studies.study import Request


@dataclass(frozen=True)
class Entry:
    """A network to be measured.

    Attributes:
        models: one per seed; sizes and times are those of the first.
        test: samples that fit it.
        paper: column (as in `Measured`) → the paper's figure in its own words.
        timed: what is timed instead of the first model, so that all take the same input.
        suffix: of the file that is measured; its runtime runs it, torch a `.pt2`.
    """

    name: str
    models: Sequence[Model]
    test: Dataset
    paper: dict[str, str] = field(default_factory=dict)
    timed: Model | None = None
    suffix: str = ".onnx"


@dataclass(frozen=True)
class Measured:
    """One row.

    Attributes:
        top1: share of the test images that the file gets right in its runtime, 0 … 1, one per seed.
        difference: top1 of the first seed less the first network's, paired; None for networks that were not
            asked to be compared so.
        file_size: bytes.
        seconds: median of one call with one sample, one thread.
        speedup: the first network's time over this one's.
    """

    name: str
    paper: dict[str, str]
    parameters: int
    nonzero: int
    macs: int
    top1: tuple[float, ...]
    difference: Estimate | None
    file_size: int
    seconds: float
    speedup: Estimate | None
    runtime: str

    @property
    def mean_top1(self) -> float:
        return statistics.fmean(self.top1)


@dataclass(frozen=True)
class ComparisonResult(Result):
    """All rows of a study.

    Attributes:
        budget: what ours were trained on and for how long, in words.
        verdict: what follows, one sentence.
        notes: where our setting differs from the paper's, and warnings of the benchmark.
    """

    kind: ClassVar[str] = "comparison"

    study: str
    columns: tuple[str, ...]
    rows: tuple[Measured, ...]
    budget: str
    verdict: str
    seconds: float
    notes: tuple[str, ...] = ()


def measure(
    request: Request, entries: Sequence[Entry], *, paired: bool = False, time_budget: float = 10.0
) -> tuple[tuple[Measured, ...], tuple[str, ...]]:
    """Write, evaluate and time every network; the second value is the benchmark's warnings.

    Args:
        paired: all networks take the same samples: also give the paired difference to the first.
        time_budget: seconds of measuring time for all.
    """
    candidates, scores, differences, costs = [], [], [], []
    first: Any = None
    for position, entry in enumerate(entries):
        path = request.folder / f"{position}{entry.suffix}"
        target = "ort-cpu" if entry.suffix == ".onnx" else None  # where it is measured
        tops, difference = [], None
        for number, model in enumerate(entry.models):
            file = path.with_stem(f"{position}-{number}")
            with request.writing(file.name) as temporary:
                write(model, temporary, target=target)
            run = open_artifact(model if entry.suffix == ".pt2" else file).run
            first = first or run
            if paired and position > 0 and number == 0:
                pair = evaluate_paired(first, run, entry.test)
                tops.append(pair.top1_changed)
                difference = pair.difference
            else:
                tops.append(evaluate(run, entry.test, "classification").top1 or 0.0)
        differences.append(difference)
        scores.append(tuple(tops))
        costs.append(cost(entry.models[0]))
        if entry.timed is not None:
            with request.writing(path.name) as temporary:
                write(entry.timed, temporary, target=target)
        measured: Path | Model = path if entry.timed is not None else path.with_stem(f"{position}-0")
        if entry.suffix == ".pt2":
            measured = entry.timed or entry.models[0]
        candidates.append(Candidate(entry.name, measured))
        request.say(f"{entry.name}: top-1 {100 * statistics.fmean(tops):.2f} %")
    result = benchmark(candidates, time_budget=time_budget, memory=False, progress=request.progress)
    rows = []
    for position, (entry, candidate) in enumerate(zip(entries, result.candidates)):
        rows.append(
            Measured(
                name=entry.name,
                paper=entry.paper,
                parameters=costs[position].parameters,
                nonzero=costs[position].nonzero,
                macs=costs[position].macs,
                top1=scores[position],
                difference=differences[position],
                file_size=_size(request.folder / f"{position}-0{entry.suffix}"),
                seconds=candidate.latency.median,
                speedup=candidate.speedup,
                runtime=candidate.runtime,
            )
        )
    return tuple(rows), result.warnings


def _size(path: Path) -> int:
    return path.stat().st_size
