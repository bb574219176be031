"""How a model does on held-out samples, in one pass: the loss, the task's own measure, a metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nncompress.analysis.answer import PROBED, answer_index
from nncompress.analysis.metrics.base import Metric
from nncompress.analysis.metrics.fit import check_fit, require_labels
from nncompress.analysis.metrics.registry import named_metric
from nncompress.data import Batch, Dataset
from nncompress.errors import UsageError, VerificationError
from nncompress.ir import Model
from nncompress.progress import Progress
from nncompress.train.loss.objective import CLASSES, Task, first_answers
from nncompress.train.settings import TrainSettings

Predict = Callable[..., tuple[Tensor, ...]]  # a model in evaluation mode, inputs -> a tuple of outputs


def validate(
    predict: Predict,
    dataset: Dataset,
    task: Task | None,
    batch_size: int,
    device: torch.device,
    progress: Progress,
    limit: int | None = None,
    metric: Metric | None = None,
) -> dict[str, float]:
    """`loss`, `top1` for classes of samples, and `metric` under its name, over all (or `limit`) samples.

    Args:
        task: None: the metric alone is measured.

    Raises:
        DataError: labels do not fit.
        VerificationError: the loss or the metric is not finite.
    """
    found = _Sums(predict, dataset, task, metric, device)
    for batch in dataset.batches(dataset.measuring_batch(batch_size), limit):
        progress.step("validating", found.samples, dataset.planned_samples(limit))
        found.add(batch)
    values = found.values()
    for name, value in values.items():
        if not math.isfinite(value):
            remedy = "a smaller --lr" if name == "loss" else "more samples in --val, or a smaller --lr"
            raise VerificationError(f"the validation's {name} is not finite", got=str(value), remedy=remedy)
    return values


class _Sums:
    """What held-out samples add up to."""

    def __init__(
        self,
        predict: Predict,
        dataset: Dataset,
        task: Task | None,
        metric: Metric | None,
        device: torch.device,
    ) -> None:
        self._predict, self._origin, self._device = predict, dataset.spec, device
        self._task = None if task is None else replace(task, origin=dataset.spec)
        self._metric, self._scores = metric, None if metric is None else metric.begin()
        self._has_top1 = task is not None and task.loss == "cross-entropy" and task.positions is None
        self.samples = 0
        self._loss, self._elements, self._right = 0.0, 0, 0

    def add(self, batch: Batch) -> None:
        """Raises DataError: labels do not fit."""
        with torch.inference_mode():
            output = self._predict(*(x.to(self._device) for x in batch.inputs))[0].float().cpu()
        if self._task is not None:
            target = self._task.target(output, batch, self.samples)
            if self._task.loss in CLASSES:
                self._loss += float(self._task.summed(output, target))
                self._elements += self._task.counted(target)
                self._right += int((output.argmax(1) == target).sum()) if self._has_top1 else 0
            else:
                self._loss += float((output.double() - target.double()).square().sum())
                self._elements += output.numel()
        if self._metric is not None and self._scores is not None:
            if not self.samples:
                check_fit(self._metric, output, batch, self._origin)
            self._scores.add(output, batch, self._origin)
        self.samples += len(batch)

    def values(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if self._task is not None:
            mean = self._loss / max(1, self._elements)
            found["loss"] = math.sqrt(mean) if self._task.loss == "rmse" else mean
            if self._has_top1:
                found["top1"] = self._right / self.samples
        if self._scores is not None:
            found[self._scores.metric.name] = self._scores.value
        return found


class HeldOut:
    """The held-out data of a run: what is measured on it, and which epoch was the best.

    Raises:
        UsageError: `settings` name a metric, and there is no held-out data; or there is no such metric.
        DataError: the metric needs labels, and the data has none.
    """

    def __init__(self, dataset: Dataset | None, settings: TrainSettings) -> None:
        self.dataset = dataset
        self._metric = None if settings.metric is None else named_metric(settings.metric)
        if self._metric is None:
            return
        if dataset is None:
            raise UsageError(
                f"{settings.name}: --metric is measured on held-out data",
                got=f"--metric {settings.metric} without --val",
                remedy="add --val DATA",
            )
        require_labels(self._metric, dataset)

    def check(self, predict: Predict, task: Task | None, device: torch.device) -> None:
        """Hold a few samples against the model's answers, before an epoch is spent.

        Raises:
            DataError: labels do not fit.
        """
        if self.dataset is None:
            return
        probed = self.dataset.fixed_batch or PROBED
        found = _Sums(predict, self.dataset, task, self._metric, device)
        for batch in self.dataset.batches(probed, limit=probed):
            found.add(batch)

    def measured(
        self, predict: Predict, task: Task | None, batch_size: int, device: torch.device, progress: Progress
    ) -> dict[str, float]:
        """As `validate`, which raises the same; nothing where there is no data."""
        if self.dataset is None:
            return {}
        return validate(predict, self.dataset, task, batch_size, device, progress, metric=self._metric)

    def score(self, row: dict[str, Any]) -> float:
        """What an epoch is judged by, lower is better: the metric, else the held-out loss, else the loss."""
        found = row.get("validation", {})
        if self._metric is None:
            return float(found.get("loss", row["loss"]))
        value = float(found[self._metric.name])
        return -value if self._metric.higher_is_better else value


def first_task(model: Model, dataset: Dataset, settings: TrainSettings) -> Task:
    """The task, "auto" resolved by the first samples. The model is on the CPU.

    Raises:
        DataError: the data has no samples, or no labels for the task.
    """
    index = answer_index(model, dataset)
    output, batch = first_answers(lambda batch: model.outputs_of(*batch.inputs)[index], dataset)
    return Task.choose(settings, output, batch, dataset.spec, dataset.classes)
