"""What models are measured by: a metric on labels, or, where there are none, what the original answers."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from nncompress.analysis.answer import PROBED, Answers, Predict, answer_index
from nncompress.analysis.labels import is_one_number, task_of
from nncompress.analysis.metrics.base import Metric, Scores, settle_threshold, threshold_of
from nncompress.analysis.metrics.fit import check_fit, require_labels
from nncompress.analysis.metrics.registry import TASK_METRICS, named_metric
from nncompress.analysis.metrics.summed import MeanMetric, SummedMetric
from nncompress.data import Batch, Dataset
from nncompress.errors import DataError
from nncompress.ir import Model
from nncompress.user_code import imported


class Agreement(MeanMetric):
    """Share of answers (samples; pixels, tokens) whose greatest score is the original's."""

    name, title = "agreement", "agreement with the original"
    needs_labels = False
    masked = True

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        labels = batch.labels
        if labels is None or labels.shape != output.shape or output.is_complex():
            return False
        return not output.is_floating_point() or (output.dim() > 1 and output.shape[_axis(output)] > 1)

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        labels = batch.labels
        assert labels is not None
        axis = _axis(output)
        same = output.argmax(axis) == labels.argmax(axis) if output.is_floating_point() else output == labels
        each = same.reshape(len(same), -1).double()
        # the mean of a sample's answers, not their number: all samples have as many
        return np.stack([each.mean(1).numpy(), np.ones(len(each))], axis=1)


class OutputError(SummedMetric):
    """Distance of the outputs from the original's, as a share of their norm (relative L2)."""

    name, title = "error", "error of the output"
    needs_labels = False
    higher_is_better = False

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        labels = batch.labels
        return labels is not None and labels.shape == output.shape and output.is_floating_point()

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        assert batch.labels is not None
        wanted = batch.labels.double().flatten(1)
        off = (output.double().flatten(1) - wanted).square().sum(1)
        return np.stack([off.numpy(), wanted.square().sum(1).numpy()], axis=1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(sums[..., 0] / sums[..., 1])


BY_ORIGINAL: dict[str, type[Metric]] = {"agreement": Agreement, "error": OutputError}


class Measure:
    """How good models are, as scores of each sample.

    Args:
        original: of all models that are to be compared.
        name: a metric as `eval` takes it, "agreement" or "error"; see `settled`.

    Raises:
        UsageError: there is no such metric.
        DataError: the original has several outputs, and nobody said which one counts.
    """

    def __init__(self, original: Model, name: str) -> None:
        self.name = name
        self.by_original = name in BY_ORIGINAL
        self._original = original
        self._output = answer_index(original) if self.by_original else None
        self.metric = BY_ORIGINAL[name]() if self.by_original else named_metric(name)
        self.threshold: float | None = None  # of one number per sample, settled by the first that is scored

    def scores(
        self, predict: Predict, data: Dataset, output: int | None = None, limit: int | None = None
    ) -> Scores:
        """Of one model.

        Args:
            output: which of several counts.
            limit: use this many samples, spread over the data.

        Raises:
            DataError: there are no samples, or the metric does not fit what is answered or the labels.
            VerificationError: an answer is NaN or infinite.
        """
        require_labels(self.metric, data)
        chosen = self._output if output is None else output
        answers = Answers(predict, data, "auto", chosen, self.metric)
        originals = Answers(self._original, data, "auto", self._output, self.metric)
        found, seen = self.metric.begin(), 0
        for batch in data.batches(data.measuring_batch(64), limit):
            given = replace(batch, labels=originals.of(batch, seen)) if self.by_original else batch
            result = answers.of(given, seen)
            if not seen:
                check_fit(self.metric, result, given, data.spec)
            found.add(result, given, data.spec)
            seen += len(batch)
        if not seen:
            raise DataError(f"{data.spec} gave no samples")
        settle_threshold(found, self.threshold)
        self.threshold = threshold_of(found)
        return found


def metric_key(name: str) -> str:
    """What scores by it are kept under: of the user's code its text, too.

    Raises:
        UsageError: the code cannot be imported.
    """
    if ":" not in name:
        return name
    named_metric(name)
    file = getattr(imported(name.rpartition(":")[0]), "__file__", None)
    return f"{name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ''}"


def settled(model: Model, data: Dataset, name: str | None) -> str:
    """The metric that was asked for, or the one that the labels ask for: top-1 for classes, RMSE for numbers;
    of a model without labels whose output is shaped as its input, MSE; else how it agrees with the original.

    Raises:
        UsageError: there is no such metric.
        DataError: it does not fit the labels, or a label has no output.
    """
    size = data.fixed_batch or PROBED
    batch = next(iter(data.batches(size, limit=size)), None)
    if batch is None:
        raise DataError(f"{data.spec} gave no samples")
    if name is None:
        answers = Answers(model, data, "auto", None if data.has_labels else answer_index(model))
        if data.has_labels:
            name = TASK_METRICS[task_of(answers.of(batch, 0), batch, data.spec, data.classes)]
        else:
            scores = Answers(model, data, "auto", answers.output, Agreement()).of(batch, 0)
            like_input = scores.shape == batch.samples_first()[0].shape and scores.is_floating_point()
            given = replace(batch, labels=scores)
            agrees = Agreement().fits(scores, given, None)
            name = "mse" if like_input else "agreement" if agrees else "error"
    Measure(model, name).scores(model, data, limit=size)
    if name in ("top1", "top5", "f1") and data.classes:
        result = Answers(model, data, "classification").of(batch, 0)
        check_fit(named_metric(name), result, batch, data.spec)
        told_apart = 2 if is_one_number(result) else result.shape[-1]
        if result.is_floating_point() and data.classes > told_apart:
            raise DataError(
                f"{data.spec}: there is a label that the model has no output for",
                got=f"label {data.classes - 1}",
                expected=f"0 to {told_apart - 1}",
                remedy="use data with the classes the model was trained on",
            )
    return name


def _axis(output: Tensor) -> int:
    """Of the scores of one answer: [N, C, ...], or [N, T, C]."""
    return 2 if output.dim() == 3 else 1
