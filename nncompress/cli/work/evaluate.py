"""`eval`: every model on the data, the others against the first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nncompress.analysis import accuracy
from nncompress.analysis.metrics.registry import named_metric
from nncompress.analysis.metrics.two_classes import assumption
from nncompress.benchmarking.inputs import random_inputs
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.work import artifacts, model_files, report_file
from nncompress.cli.work.in_target import in_target
from nncompress.data import Batch, Dataset
from nncompress.data.dataset import measuring_batch
from nncompress.errors import UsageError
from nncompress.report import tables
from nncompress.results import SCHEMA
from nncompress.runtimes import Runner
from nncompress.targets import written_for


def evaluate(
    models: list[str] | None,
    task: str,
    metric: str | None,
    *,
    target: str | None,
    batch: int,
    limit: int | None,
    report: str | None,
    json: bool,
    loading: dict[str, Any],
) -> None:
    """See the options of the command.

    Args:
        target: where every model is run; None: a graph in torch, a file in the runtime that owns its format.

    Raises:
        UsageError: one model alone, and nothing to measure it by.
    """
    reads = model_files.read_by(None, *(models or []), loading["data"], loading["arch"])
    report_file.check_report(report, reads)
    opened = artifacts.open_all(models, **loading)
    data = loading["data"]
    wanted = None if metric is None else named_metric(metric)
    if data is None and len(opened) < 2:
        raise UsageError("eval needs data, or two models to compare", remedy="add --data FILE.npz")
    samples = None if data is None else artifacts.dataset_for(opened, data, loading["normalize"])
    if (
        len(opened) < 2
        and samples is not None
        and not samples.has_labels
        and task != "reconstruction"
        and wanted is None
    ):
        raise UsageError(
            f"{data} has no labels, so one model alone has nothing to be measured by",
            remedy="give a second model to compare with, or --task reconstruction for an autoencoder",
        )
    names = artifacts.names(opened)
    with TemporaryDirectory(prefix="nncompress-") as folder:
        if target is not None:
            opened = in_target(opened, target, Path(folder))
        rows = _rows(opened, names, samples, task, metric, batch=batch, limit=limit)
    document = {"schema": SCHEMA, "kind": "evaluation", "models": [row.to_json() for row in rows]}
    if json:
        print_json(document)
    else:
        show(tables.evaluation(rows))
    report_file.write(report, document, reads)


def _rows(
    opened: Sequence[artifacts.Artifact],
    names: Sequence[str],
    samples: Dataset | None,
    task: str,
    metric: str | None,
    *,
    batch: int,
    limit: int | None,
) -> list[tables.EvalRow]:
    wanted = None if metric is None else named_metric(metric)
    runners = [each.open(threads=1) for each in opened]
    for name, runner in zip(names, runners):
        for note in (*runner.notes, *written_for.notes(runner.metadata, runner.runtime, runner.device)):
            say(f"{name}: {note}")
    first = runners[0].run
    answers = artifacts.answers(opened, samples, task, metric)
    labelled = samples is not None and (
        samples.has_labels or task == "reconstruction" or not (wanted is None or wanted.needs_labels)
    )
    rows: list[tables.EvalRow] = []
    measured: list[accuracy.Measured] = []
    with progress() as bar:
        for position, (name, runner) in enumerate(zip(names, runners)):
            row = tables.EvalRow(name, runner.name)
            if samples is not None and labelled:
                with artifacts.told_of(name, opened):
                    measured.append(
                        accuracy.measure(
                            runner.run,
                            samples,
                            task,
                            metric=metric,
                            batch_size=batch,
                            limit=limit,
                            output=answers[position],
                            threshold=measured[0].result.threshold if measured else None,
                            progress=bar,
                        )
                    )
                row.result = measured[-1].result
                if not position and (taken := assumption(row.result.threshold)):
                    say(taken)
                if position:
                    row.paired = measured[-1].against(measured[0])
            if position:
                inputs: Iterable[Any] = (
                    samples.batches(samples.measuring_batch(batch), limit or 512)
                    if samples
                    else _random(runners[0])
                )
                row.difference = accuracy.compare(
                    first, runner.run, inputs, names=runners[0].outputs, progress=bar
                )
            rows.append(row)
    return rows


def _random(first: Runner) -> list[Batch]:

    one = random_inputs(first.inputs, batch=1, seed=0, sizes=first.sizes)
    batch = measuring_batch(sum(array.nbytes for array in one), 16)
    drawn = [random_inputs(first.inputs, batch=batch, seed=seed, sizes=first.sizes) for seed in range(8)]
    dims = tuple(spec.batch_dim for spec in first.inputs)
    return [Batch(tuple(torch.from_numpy(array) for array in arrays), None, dims) for arrays in drawn]
