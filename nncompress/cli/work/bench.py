"""`bench`: plan, measure, report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer

from nncompress.analysis.accuracy import Measured
from nncompress.analysis.accuracy import measure as measured
from nncompress.analysis.metrics.registry import named_metric
from nncompress.analysis.metrics.two_classes import assumption
from nncompress.benchmarking import PARITY_SAMPLES, Candidate, baseline, benchmark, files
from nncompress.benchmarking.environment import environment
from nncompress.benchmarking.inputs import Inputs, inputs_of, phases
from nncompress.benchmarking.sessions import clock_of
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.work import artifacts, bench_candidates, model_files, report_file
from nncompress.cli.work.in_target import check_runs
from nncompress.data import Dataset
from nncompress.errors import DataError, ExitCode, RegressionError, UsageError
from nncompress.ir.graph.inputs import BATCH
from nncompress.ir.graph.table_rows import most_positions
from nncompress.progress import Progress
from nncompress.report import bench_table
from nncompress.results import BenchResult, BenchSuite, Phase
from nncompress.runtimes.base import output_array
from nncompress.runtimes.free_sizes import free_dims


def bench(
    models: list[str] | None,
    *,
    every: bool,
    runtime: str,
    target: str | None,
    device: str,
    precision: str | None,
    mode: str | None,
    batches: tuple[int, ...] | None,
    tokens: int | None,
    settings: dict[str, Any],
    outputs: list[str],
    compare: str | None,
    tolerance: float,
    metric: str | None,
    report: str | None,
    json: bool,
    loading: dict[str, Any],
) -> None:
    """See the options of the command.

    Args:
        settings: of `nncompress.benchmarking.benchmark`.

    Raises:
        UsageError: nothing here is measured in what was asked for, or not with the baseline.
        RegressionError: a model is slower than the baseline allows.
    """
    if target is not None:
        to = bench_candidates.target(*bench_candidates.from_targets(target, device, runtime), precision, mode)
    else:
        to = bench_candidates.target(device, runtime, precision, mode)

    # What could fail after the measurement is tried before it.
    reads = model_files.read_by(None, *(models or []), compare, loading["data"], loading["arch"])
    files.check_files(outputs, protect=reads)
    report_file.check_report(report, reads, *(outputs))
    old = None if compare is None else baseline.read(compare)
    opened = artifacts.open_all(models, every=every, **loading)
    if tokens is not None:
        check_tokens(opened, tokens)
    if target is not None:
        for each in opened:
            check_runs(each, bench_candidates.named(target))
    names = artifacts.names(opened)
    batches = batches or (fixed_batch(opened[0]) or opened[0].least_batch,)
    data = loading["data"]
    samples = None if data is None else artifacts.dataset_for(opened, data, loading["normalize"])
    settled = artifacts.answers(opened, samples, metric=metric)
    with progress() as bar, TemporaryDirectory() as folder:
        made = [
            bench_candidates.candidates_of(each, name, to, Path(folder) / f"{position}", bar)
            for position, (each, name) in enumerate(zip(opened, names))
        ]
        candidates = [candidate for each in made for candidate in each]
        answers = [answer for each, answer in zip(made, settled) for _ in each]
        if not candidates:
            raise UsageError("no model can be measured in what was asked for", got=f"--precision {precision}")
        if old is not None:
            check_plan(old, candidates, batches, settings["threads"], str(compare))
        suite = measure(candidates, batches, samples, answers, metric, settings, bar, tokens)
    if old is not None and not suite.interrupted:
        suite = replace(suite, baseline=baseline.compare(old, suite, name=str(compare), tolerance=tolerance))
    tell(suite, outputs, report, json, reads)


def check_plan(
    old: Any, candidates: list[Candidate], batches: tuple[int, ...], threads: int, compare: str
) -> None:
    """Refuse what could not be compared with the baseline, before the measurement."""

    baseline.check_plan(
        old,
        environment(),
        batches=batches,
        threads=threads,
        clock=clock_of(candidates, threads),
        names=[candidate.name for candidate in candidates],
        name=compare,
    )


def check_tokens(opened: Sequence[artifacts.Artifact], tokens: int) -> None:
    """Refuse prompts that are longer than a model has positions for.

    Raises:
        UsageError
    """
    for each in opened:
        found = {} if each.model is None else most_positions(each.model)
        for most, table in found.values():
            if tokens > most:
                raise UsageError(
                    f"{each.name} has positions for {most} tokens",
                    got=f"--tokens {tokens}, and {table} has {most} rows",
                    remedy=f"--tokens {most}, or fewer",
                )


def measure(
    candidates: list[Candidate],
    batches: tuple[int, ...],
    samples: Dataset | None,
    answers: list[int | None],
    metric: str | None,
    settings: dict[str, Any],
    bar: Progress,
    tokens: int | None = None,
) -> BenchSuite:
    """One benchmark per batch size, with `tokens` per phase; Ctrl-C ends the series and keeps what there is.

    Raises:
        KeyboardInterrupt: before anything was measured.
    """

    calls: list[_Call] = []
    for batch in batches:
        if tokens is not None:
            calls += _phases(candidates[0], batch, tokens, settings["seed"])
        else:
            inputs, parity = _one_call(samples, batch), _one_call(samples, PARITY_SAMPLES, batch)
            calls.append(_Call(batch, inputs, parity))
    runs: list[BenchResult] = []
    reached = _accuracies(
        candidates, samples, answers, metric, bar
    )  # labels that do not fit are told before the wait
    try:
        for call in calls:
            given: dict[str, Any] = {"inputs": call.inputs, "parity_inputs": call.parity, "batch": call.batch}
            runs.append(replace(benchmark(candidates, progress=bar, **given, **settings), phase=call.phase))
            if runs[-1].interrupted:
                break
    except KeyboardInterrupt:
        if not runs:
            raise
        runs[-1] = replace(runs[-1], interrupted=True)
    return BenchSuite(tuple(judged(run, reached) for run in runs) if reached else tuple(runs))


def judged(run: BenchResult, reached: list[Measured]) -> BenchResult:
    """The measurement with how good each candidate is, the later ones paired with the first."""
    candidates = tuple(
        replace(
            each, accuracy=found.result, paired=None if found is reached[0] else found.against(reached[0])
        )
        for each, found in zip(run.candidates, reached)
    )
    return replace(run, candidates=candidates)


@dataclass(frozen=True)
class _Call:
    """What is measured: a batch size, maybe of data, or a phase of a language model."""

    batch: int
    inputs: Inputs | None
    parity: Inputs | None
    phase: Phase | None = None


def _phases(first: Candidate, batch: int, tokens: int, seed: int) -> Iterator[_Call]:
    specs = first.open(threads=1).inputs
    if free_dims([spec.shape for spec in specs]) not in ([], [BATCH]):
        say(f"--tokens {tokens} decides the sizes that are measured")
    for phase in phases(specs, tokens, first.name):
        inputs = inputs_of(phase, specs, batch, seed, first.name)
        yield _Call(batch, inputs, inputs, phase)


def tell(
    suite: BenchSuite, output: list[str], report: str | None, json: bool, reads: tuple[Path, ...]
) -> None:
    """Show it, write it, and end with the exit code that it deserves.

    Raises:
        OutputError: a file cannot be written after all; the result was shown by then.
        RegressionError: a model is slower than in the baseline.
    """

    if json:
        print_json(suite.to_json())
    else:
        show(bench_table.suite(suite))
    for path in output:
        files.write_file(suite, path)
    report_file.write(report, suite.to_json(), reads)
    if suite.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if suite.baseline is not None and suite.baseline.regressions:
        worst = max(suite.baseline.regressions, key=lambda change: change.slowdown.value)
        raise RegressionError(
            f"{worst.name} is slower than in {suite.baseline.baseline}",
            got=f"{worst.slowdown.value:.2f} times as slow, at least {worst.slowdown.low:.2f} "
            f"(batch {worst.batch}, {worst.measure})",
            expected=f"at most {1 + suite.baseline.tolerance:.2f}",
        )


def fixed_batch(artifact: artifacts.Artifact) -> int | None:
    """The batch that the artifact is bound to, None where it is free."""
    sizes = (spec.shape[d] for spec in artifact.inputs if (d := spec.batch_dim) is not None)
    return next((size for size in sizes if isinstance(size, int)), None)


def _one_call(samples: Dataset | None, wanted: int, at_least: int = 0) -> Inputs | None:
    """Samples of the data as one call.

    Args:
        at_least: the call may have more than were wanted.
    Raises:
        UsageError: the model is bound to another batch.
        DataError: the data has fewer samples.
    """
    if samples is None:
        return None
    size = max(wanted, at_least)
    fixed = samples.fixed_batch
    if fixed is not None and not at_least and fixed != size:
        raise UsageError(
            f"the first model takes batches of {fixed} only", got=f"--batch {size}", remedy=f"--batch {fixed}"
        )
    for each in samples.batches(fixed or size, limit=fixed or size):
        inputs = tuple(output_array(tensor) for tensor in each.inputs)
        if not at_least and len(each) < size:
            raise DataError(
                f"{samples.spec} has fewer samples than one call takes",
                got=str(len(each)),
                expected=f"--batch {size}",
                remedy="a smaller --batch, or leave --data out to measure on random inputs",
            )
        return inputs
    return None


def _accuracies(
    candidates: list[Candidate],
    samples: Dataset | None,
    answers: list[int | None],
    metric: str | None,
    bar: Progress,
) -> list[Measured]:
    """Each candidate's accuracy, where the data has labels (or the metric needs none)."""
    unlabelled = metric is not None and not named_metric(metric).needs_labels
    if samples is None or not (samples.has_labels or unlabelled):
        return []
    found: list[Measured] = []
    for candidate, answer in zip(candidates, answers):
        threshold = found[0].result.threshold if found else None
        run = candidate.open(threads=1).run
        found.append(measured(run, samples, metric=metric, output=answer, threshold=threshold, progress=bar))
    if found and (taken := assumption(found[0].result.threshold)):
        say(taken)
    return found
