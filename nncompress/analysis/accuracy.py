"""Is the smaller model still right? Streamed over data, with the uncertainty of the answer.

A share measured on n samples has a standard error: 0.9 points on 846 samples at 92 %. Two models measured on
the same samples differ by less than that would suggest, because they mostly err on the same ones: compare
them paired (`evaluate_paired`), which looks only at the samples where they differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nncompress.analysis.answer import (
    TASKS,
    Answers,
    Predict,
    check_finite,
    has_samples,
    output_dims,
    outputs_of,
    twice,
)
from nncompress.analysis.intervals import paired_difference
from nncompress.analysis.metrics.base import Metric, Scores, check_pair, settle_threshold, threshold_of
from nncompress.analysis.metrics.fit import check_fit, require_labels
from nncompress.analysis.metrics.registry import metric_of, named_metric
from nncompress.analysis.metrics.summed import SummedScores
from nncompress.data import Batch, Dataset
from nncompress.errors import DataError, UsageError, VerificationError
from nncompress.progress import NullProgress, Progress
from nncompress.results import (
    CompareResult,
    EvalResult,
    MetricDifference,
    OutputDifference,
    PairedResult,
)

TOP = 5


@dataclass(frozen=True)
class Measured:
    """One model on a data set: the result, and what each sample adds to it, by which it is paired."""

    result: EvalResult
    scores: Scores

    def against(self, first: Measured) -> PairedResult | MetricDifference:
        """This model less the first, on the same samples.

        Raises:
            DataError: they were measured on others, or by another metric.
        """
        check_pair(self.scores, first.scores)
        if isinstance(self.scores, SummedScores) and self.scores.metric.name == "top1":
            assert isinstance(first.scores, SummedScores)
            return _paired_shares(first.scores, self.scores)
        return MetricDifference(
            metric=self.scores.metric.name,
            samples=self.scores.samples,
            original=first.scores.value,
            changed=self.scores.value,
            difference=self.scores.less(first.scores),
        )


def measure(
    predict: Predict,
    dataset: Dataset,
    task: str = "auto",
    *,
    metric: str | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    output: int | None = None,
    threshold: float | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Run a model over data, and hold its answers against the labels.

    Args:
        task: `classification` (scores [N, C], class numbers [N], or one logit or probability against 0 and 1;
            integer labels [N]: top-1, and top-5 of scores; -inf is a class that the model rules out),
            `regression` (outputs
            and targets of one shape: RMSE), `reconstruction` (outputs shaped like the first input: MSE), or
            `auto`: regression for floating targets, or one output number and labels beyond 0 and 1;
            reconstruction where there are no labels or the output is an image like the input; else
            classification.
        metric: another measure than the task's own (`nncompress.analysis.metrics`).
        limit: use this many samples, spread over the data.
        output: which output of a model with several; None: the one that the labels fit.
        threshold: of one number per sample, above which it is class 1: that of the model to compare with
            (`EvalResult.threshold`). None: told by whether the numbers all lie in 0 … 1.
    Raises:
        DataError: labels are missing or do not fit the outputs, or fit several.
        VerificationError: an output is NaN or infinite.
    """
    if task not in TASKS:
        raise UsageError("unknown task", got=task, expected=", ".join(TASKS))
    chosen = None if metric is None else named_metric(metric)
    if chosen is not None:
        require_labels(chosen, dataset)
    elif task in ("classification", "regression"):
        dataset.require_labels(task)
    answers = Answers(predict, dataset, task, output, chosen)
    measured: list[Scores] = []
    samples = 0
    for batch in _reported(dataset, batch_size, limit, "evaluating", progress):
        result = answers.of(batch, samples)
        if not measured:
            if chosen is not None:
                check_fit(chosen, result, batch, dataset.spec)
            measured = [each.begin() for each in _metrics(chosen, answers.task, result)]
        for scores in measured:
            scores.add(result, batch, dataset.spec)
        samples += len(batch)
    if samples == 0:
        raise DataError(f"{dataset.spec} gave no samples to evaluate on")
    for scores in measured:
        settle_threshold(scores, threshold)
    first = measured[0]
    values = {scores.metric.name: scores.value for scores in measured}
    top1 = values.get("top1")
    return Measured(
        EvalResult(
            dataset.spec,
            answers.task if chosen is None else chosen.name,
            samples,
            **{name: values[name] for name in ("top1", "top5", "rmse", "mse") if name in values},
            top1_standard_error=None if top1 is None else math.sqrt(top1 * (1 - top1) / samples),
            metric=first.metric.name,
            value=first.value,
            interval=first.interval(),
            threshold=threshold_of(first),
        ),
        first,
    )


def _metrics(chosen: Metric | None, task: str, result: Tensor) -> list[Metric]:
    """The metrics to report: the one asked for, or the task's; the first is the one to compare by."""
    if chosen is not None:
        return [chosen]
    found = [metric_of(task)]
    if task == "classification" and result.dim() > 1 and result.is_floating_point() and result.shape[1] > TOP:
        found.append(named_metric("top5"))
    return found


def evaluate(predict: Predict, dataset: Dataset, task: str = "auto", **options: Any) -> EvalResult:
    """How good a model is: the result of `measure`, which takes the same arguments and raises the same."""
    return measure(predict, dataset, task, **options).result


def evaluate_paired(
    original: Predict,
    changed: Predict,
    dataset: Dataset,
    *,
    outputs: tuple[int | None, int | None] = (None, None),
    **options: Any,
) -> PairedResult:
    """Top-1 of two classifiers on the same samples, with the interval of their difference.

    Args:
        options: see `measure`.
    Raises:
        DataError: labels are missing or do not fit the outputs.
        VerificationError: an output is NaN or infinite.
    """
    dataset.require_labels("a paired comparison")
    first = measure(original, dataset, "classification", output=outputs[0], **options)
    options = {"threshold": first.result.threshold, **options}
    second = measure(changed, dataset, "classification", output=outputs[1], **options)
    found = second.against(first)
    assert isinstance(found, PairedResult)
    return found


def _paired_shares(original: SummedScores, changed: SummedScores) -> PairedResult:
    before, after = original.rows[:, 0], changed.rows[:, 0]
    samples = len(before)
    only_original, only_changed = int((before > after).sum()), int((after > before).sum())
    return PairedResult(
        samples=samples,
        top1_original=original.value,
        top1_changed=changed.value,
        only_original=only_original,
        only_changed=only_changed,
        difference=paired_difference(only_original, only_changed, samples),
        p_value=mcnemar_p_value(only_original, only_changed),
    )


def compare(
    original: Predict,
    changed: Predict,
    inputs: Iterable[Batch | tuple[Tensor, ...]],
    *,
    names: tuple[str, ...] = (),
    total: int | None = None,
    progress: Progress | None = None,
) -> CompareResult:
    """How far a changed model's outputs are from the original's, without labels.

    Args:
        inputs: batches, or tuples of input tensors.
        names: of the outputs.
        total: samples to come, for the progress bar.
    Raises:
        DataError: there are no inputs.
        VerificationError: the outputs differ in number or shape, or are NaN or infinite.
    """
    progress = progress or NullProgress()
    sums: list[_Difference] = []
    samples = 0
    places: tuple[int | None, ...] | None = None
    for given in inputs:
        batch = given if isinstance(given, Batch) else Batch(tuple(given), None)
        first, second = outputs_of(original, batch.inputs), outputs_of(changed, batch.inputs)
        if [x.shape for x in first] != [x.shape for x in second]:
            raise VerificationError(
                "the changed model has other outputs than the original",
                got=", ".join(str(list(x.shape)) for x in second),
                expected=", ".join(str(list(x.shape)) for x in first),
            )
        sums = sums or [_Difference() for _ in first]
        count = len(batch)
        places = places if places is not None else output_dims(original, batch, first)
        if count == 1 and not all(d is None or has_samples(x, d, 1) for x, d in zip(first, places)):
            doubled = twice(batch).inputs
            first, second = (
                tuple(x if d is None else x.narrow(d, 0, 1) for x, d in zip(outputs_of(run, doubled), places))
                for run in (original, changed)
            )
        for total_of_output, a, b, dim in zip(sums, first, second, places):
            # what all samples share is one sample
            a, b = (x[None] if dim is None else x.movedim(dim, 0) for x in (a, b))
            total_of_output.add(*_comparable(a, b, samples))
        samples += count
        progress.step("comparing outputs", samples, total)
    if samples == 0:
        raise DataError("there is nothing to compare the models on", expected="at least one input")
    names = names if len(names) == len(sums) else tuple(f"output_{i}" for i in range(len(sums)))
    return CompareResult(samples, tuple(s.result(name) for s, name in zip(sums, names)))


class _Difference:
    """Running sums over the batches of one output, in float64."""

    def __init__(self) -> None:
        self.same = self.choices = self.samples = 0
        self.cosines = self.energy = self.error = self.max_abs = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Samples first, [N, ...]."""
        axis = 2 if a.dim() == 3 else 1  # [N, T, C] token scores; else [N, C, ...]
        same = None
        if not a.is_floating_point():
            same = a == b
        elif a.dim() > 1 and a.shape[axis] > 1:
            same = a.argmax(axis) == b.argmax(axis)
        if same is not None:
            self.same += int(same.sum())
            self.choices += same.numel()
        a, b = a.double(), b.double()
        flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        norm_a, norm_b = flat_a.norm(dim=1), flat_b.norm(dim=1)
        # Two outputs of zeros point the same way; one of zeros and another do not.
        both_zero = ((norm_a == 0) & (norm_b == 0)).double()
        norms = norm_a * norm_b
        cosine = torch.where(norms > 0, (flat_a * flat_b).sum(1) / norms.clamp(min=1e-300), both_zero)
        self.cosines += float(cosine.sum())
        self.samples += len(a)
        self.energy += float(a.square().sum())
        self.error += float((a - b).square().sum())
        if a.numel():
            self.max_abs = max(self.max_abs, float((a - b).abs().max()))

    def result(self, name: str) -> OutputDifference:
        if self.error == 0:
            sqnr = math.inf
        else:
            sqnr = 10 * math.log10(self.energy / self.error) if self.energy > 0 else -math.inf
        return OutputDifference(
            name=name,
            agreement=self.same / self.choices if self.choices else None,
            cosine=self.cosines / self.samples,
            sqnr_db=sqnr,
            max_abs=self.max_abs,
        )


def mcnemar_p_value(only_original: int, only_changed: int) -> float:
    """Exact two-sided McNemar test: how likely a split at least as uneven is, were both equally good."""
    n, k = only_original + only_changed, min(only_original, only_changed)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    return min(1.0, 2 * sum(math.exp(log - n * math.log(2)) for log in logs))


def _reported(
    dataset: Dataset, batch_size: int, limit: int | None, description: str, progress: Progress | None
) -> Iterator[Batch]:
    progress = progress or NullProgress()
    total, done = dataset.planned_samples(limit), 0
    for batch in dataset.batches(dataset.measuring_batch(batch_size), limit):
        yield batch
        done += len(batch)
        progress.step(description, done, total)


def _comparable(a: Tensor, b: Tensor, first_sample: int) -> tuple[Tensor, Tensor]:
    """Two outputs [N, ...]; where both are the same infinity (a mask), both are 0.

    Raises:
        VerificationError: NaN, or an infinity in one of them only.
    """
    if not (a.is_floating_point() or a.is_complex()):
        return a, b
    masked = (a == b) & torch.isinf(a)
    a, b = a.masked_fill(masked, 0), b.masked_fill(masked, 0)
    for each in (a, b):
        check_finite(each, first_sample)
    return a, b
