"""Classes: of a sample, or of each of its pixels or tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.labels import (
    are_two_classes,
    chosen_classes,
    class_labels,
    is_one_number,
    two_class_labels,
)
from nncompress.analysis.metrics.summed import MeanMetric, SummedMetric, SummedScores
from nncompress.analysis.metrics.two_classes import ClassScores
from nncompress.data import Batch
from nncompress.errors import DataError

MOST_CLASSES = 1 << 16  # of metrics that count every class by itself


class _OfClasses(SummedMetric):
    """Scores [N, C] or class numbers [N] against classes [N]; or one number [N, 1] against 0 and 1."""

    masked = True

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        if is_one_number(output):
            return are_two_classes(batch.labels, classes)
        return fits_classes(output, batch, classes)

    def check(self, output: Tensor, batch: Batch, origin: str, remedy: str) -> None:
        if is_one_number(output):
            two_class_labels(batch.labels, origin, 0)
        else:
            class_labels(output, batch.labels, origin, 0, remedy)

    def begin(self) -> SummedScores:
        return ClassScores(self)


class Top(_OfClasses, MeanMetric):
    """Share of samples whose label is among the `count` highest scores [N, C]."""

    count: int

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        several = output.is_floating_point() and not is_one_number(output)
        return super().fits(output, batch, classes) and (self.count == 1 or several)

    def check(self, output: Tensor, batch: Batch, origin: str, remedy: str) -> None:
        if self.count > 1 and is_one_number(output):
            raise DataError(
                f"{origin}: --metric {self.name} is of scores of several classes",
                got="one number per sample",
                remedy=remedy,
            )
        super().check(output, batch, origin, remedy)

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        labels = class_labels(output, batch.labels, origin, first_sample)
        if self.count == 1:
            right = chosen_classes(output) == labels
        else:
            best = output.topk(min(self.count, output.shape[1]), dim=1).indices
            right = (best == labels[:, None]).any(1)
        return np.stack([right.double().numpy(), np.ones(len(output))], axis=1)


class Top1(Top):
    """Share of samples whose label has the highest score."""

    name, title, count = "top1", "top-1", 1


class Top5(Top):
    """Share of samples whose label is among the five highest scores."""

    name, title, count = "top5", "top-5", 5


class F1(_OfClasses):
    """Mean over classes of the harmonic mean of precision and recall; classes that neither labels nor answers
    name do not count ("macro", as scikit-learn has it)."""

    name, title = "f1", "F1"

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        labels = class_labels(output, batch.labels, origin, first_sample)
        answers = chosen_classes(output)
        classes = _classes(output, answers, labels, origin)
        counts = np.zeros((len(output), classes, 3))  # right, answered, labelled
        sample = np.arange(len(output))
        counts[sample, labels.numpy(), 2] = 1
        named = answers.numpy() >= 0
        counts[sample[named], answers.numpy()[named], 1] = 1
        counts[:, :, 0] = counts[:, :, 1] * counts[:, :, 2]
        return counts.reshape(len(output), -1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        right, answered, labelled = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
        named = answered + labelled
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nanmean(np.where(named > 0, 2 * right / named, np.nan), axis=-1)


class MeanIoU(SummedMetric):
    """Mean over classes of intersection over union of pixels; labels below 0, and 255, are left out.

    The answer is one score per class [N, C, ...], one logit [N, 1, ...], or class numbers [N, ...]; scores at
    another resolution than the labels' are interpolated.
    """

    name, title = "miou", "mIoU"
    IGNORED = 255

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        labels = batch.labels
        if labels is None or labels.is_floating_point() or labels.dim() < 2:
            return False
        found = labels[(labels >= 0) & (labels != self.IGNORED)]
        most = int(found.max()) if found.numel() else 0
        if not output.is_floating_point():
            return output.shape == labels.shape
        if output.dim() != labels.dim() + 1:
            return False
        return output.shape[1] > most or (output.shape[1] == 1 and most <= 1)

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        assert batch.labels is not None
        labels = batch.labels
        answers = output.long()
        if output.is_floating_point():
            if output.shape[2:] != labels.shape[1:]:
                mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[labels.dim() - 1]
                output = torch.nn.functional.interpolate(output, labels.shape[1:], mode=mode)
            answers = (output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)
        counted = (labels >= 0) & (labels != self.IGNORED)
        classes = _classes(output, answers, labels[counted], origin)
        rows = []
        for answer, label, keep in zip(answers, labels, counted):
            a, b = answer[keep], label[keep]
            both, ours, theirs = (torch.bincount(x, minlength=classes) for x in (a[a == b], a[a >= 0], b))
            rows.append(torch.stack([both, ours + theirs - both], dim=1).flatten())
        return torch.stack(rows).double().numpy()

    def value(self, sums: np.ndarray) -> np.ndarray:
        both, union = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 2), -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nanmean(np.where(union > 0, both / union, np.nan), axis=-1)


def _classes(output: Tensor, answers: Tensor, labels: Tensor, origin: str) -> int:
    """How many classes there are: one per score, or up to the greatest that is named.

    Raises:
        DataError: more than anybody has.
    """
    found = output.shape[1] if output.is_floating_point() else 0
    found = max(found, 2, *(int(x.max()) + 1 for x in (answers, labels) if x.numel()))
    if found > MOST_CLASSES:
        raise DataError(
            f"{origin}: class numbers are too great to be counted class by class",
            got=str(found - 1),
            expected=f"below {MOST_CLASSES}",
        )
    return found


def fits_classes(output: Tensor, batch: Batch, classes: int | None) -> bool:
    """Whether labels [N] may be classes of `output`: scores [N, C], or class numbers [N] or [N, 1]."""
    labels = batch.labels
    if labels is None or labels.is_floating_point() or labels.dim() != 1 or output.is_complex():
        return False
    if not output.is_floating_point():
        return output.numel() == len(batch)
    return output.dim() == 2 and output.shape[1] > max(1, int(labels.max()), (classes or 1) - 1)
