"""What is minimised: the task's loss, with the teacher's, and the penalties on weights.

All data terms are means over the samples of the whole step, also when several processes share it: each
weighs its part by the share of samples it has, and a root is taken of the sum over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.analysis.answer import PROBED
from nncompress.analysis.labels import class_labels, is_one_number, target_like, task_of
from nncompress.data import Batch, Dataset
from nncompress.errors import DataError, UnsupportedError
from nncompress.train.distributed import Group
from nncompress.train.loss.positions import (
    LEFT_OUT,
    binary_cross_entropy,
    classes_of,
    positions_of,
    scores_of,
    two_classes,
)
from nncompress.train.loss.teacher import Teacher
from nncompress.train.settings import TrainSettings

NUMBERS = 64  # samples that tell a logit from a probability
BINARY = "binary-cross-entropy"
CLASSES = ("cross-entropy", BINARY)  # losses of classification
TAUGHT = (
    "one class number per sample, or floats shaped as the output (--task regression); else what another "
    "model answers: --teacher MODEL --teacher-weight 1"
)


@dataclass(frozen=True)
class Task:
    """What the outputs are held against, and with which loss.

    Attributes:
        why: what made it this loss, as a user reads it.
        positions: what of a sample has a class of its own (see `positions`); None: the sample itself.
    """

    kind: str
    loss: str
    origin: str
    label_smoothing: float = 0.0
    why: str = ""
    positions: str | None = None

    @classmethod
    def choose(
        cls,
        settings: TrainSettings,
        output: Tensor,
        batch: Batch,
        origin: str,
        classes: int | None = None,
    ) -> Task:
        """Resolve "auto".

        Args:
            classes: one more than the greatest class number of the whole data, where that is known.

        Raises:
            DataError: the data has no labels for the task.
        """
        told = settings.task != "auto"
        loss: str = settings.loss
        kind: str = settings.task
        wanted = "classification" if loss in CLASSES else kind
        positions = positions_of(output, batch) if wanted in ("auto", "classification") else None
        if not told:
            sure = positions is not None or loss == BINARY
            kind = "classification" if sure else _auto(output, batch, origin, classes)
        one_logit = output.shape[1] == 1 if positions == "pixels" else is_one_number(output)
        if loss == "auto":
            loss = "mse" if kind != "classification" else BINARY if one_logit else "cross-entropy"
        if (kind == "classification") != (loss in CLASSES) or (positions and one_logit != (loss == BINARY)):
            raise DataError(
                f"{origin}: the loss does not fit the task",
                got=f"--loss {loss}",
                expected=f"one for {kind}" + (f" of {positions}" if positions else ""),
                remedy="leave --loss out"
                if kind == "classification"
                else "--task classification, with one class number per sample",
            )
        why = (
            f"--task {kind}"
            if told
            else _reason(kind, loss, positions, output, batch, settings.loss == BINARY)
        )
        return cls(kind, loss, origin, settings.label_smoothing, why, positions)

    def target(self, output: Tensor, batch: Batch, first_sample: int = 0) -> Tensor:
        """Classes [N], or of positions [N, ...], or targets shaped as `output`.

        Raises:
            DataError: there are none, or they do not fit the output; names the sample, the batch's first
                being `first_sample`.
        """
        if self.positions is not None:
            return classes_of(self.positions, output, batch, self.origin, first_sample)
        if self.loss == BINARY:
            return two_classes(output, batch.labels, self.origin, first_sample)
        if self.kind == "classification":
            return class_labels(output, batch.labels, self.origin, first_sample, TAUGHT)
        given = batch.inputs[0] if self.kind == "reconstruction" else batch.labels
        return target_like(output, given, self.origin, self.kind).to(output.dtype)

    def mean(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over samples, or over positions that have a class, before any root."""
        if self.loss not in CLASSES:
            return F.mse_loss(output, target)
        if self.loss != BINARY and self.positions is None:
            return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)
        return self.summed(output, target, self.label_smoothing) / max(1, self.counted(target))

    def summed(self, output: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The sum over samples, or over positions that have a class, of a loss that is a cross-entropy."""
        if self.positions is not None:
            output = scores_of(self.positions, output, target)
        if self.loss == BINARY:
            return binary_cross_entropy(output, target, label_smoothing)
        return F.cross_entropy(
            output, target, ignore_index=LEFT_OUT, label_smoothing=label_smoothing, reduction="sum"
        )

    def counted(self, target: Tensor) -> int:
        """How many have a class."""
        return int((target != LEFT_OUT).sum())


def first_answers(answer: Callable[[Batch], Tensor], dataset: Dataset) -> tuple[Tensor, Batch]:
    """What the first samples are answered, more of them where the answer is one number: a few logits may lie
    in 0 … 1 by chance.

    Raises:
        DataError: there are no samples.
    """
    found = None
    for probed in (PROBED, NUMBERS):
        for batch in dataset.batches(dataset.fixed_batch or probed, limit=dataset.fixed_batch or probed):
            with torch.no_grad():
                found = answer(batch), batch
            break
        if found is None:
            raise DataError(f"{dataset.spec} has no samples")
        if not is_one_number(found[0]):
            break
    assert found is not None
    return found


def _auto(output: Tensor, batch: Batch, origin: str, classes: int | None) -> str:
    """The task that is not told. One number per sample against 0 and 1 is a logit where it leaves 0 … 1; else
    it may be a probability, which binary-cross-entropy of logits is not for, and is to meet the labels."""
    task = task_of(output, batch, origin, classes)
    if task == "classification" and is_one_number(output) and _within_one(output):
        return "regression"
    return task


def _within_one(output: Tensor) -> bool:
    return bool(((output >= 0) & (output <= 1)).all())


def _reason(kind: str, loss: str, positions: str | None, output: Tensor, batch: Batch, given: bool) -> str:
    """What made this the task."""
    if positions == "next tokens":
        labels = "there are no labels" if batch.labels is None else "labels are the input's tokens"
        return f"{labels}, and the output has {output.shape[2]} scores per token, for the one that comes next"
    if positions == "tokens":
        return f"labels are a class number per token, and the output has {output.shape[2]} scores for each"
    if positions == "pixels":
        scores = "one logit" if loss == BINARY else f"{output.shape[1]} scores"
        assert batch.labels is not None
        size = (
            "" if output.shape[2:] == batch.labels.shape[1:] else ", interpolated to the labels' resolution"
        )
        return f"labels are a class number per pixel, and the output has {scores} for each{size}"
    if loss == BINARY and given:
        return "--loss binary-cross-entropy: one logit per sample, of class 1 against class 0"
    if loss == BINARY:
        return (
            "labels are 0 and 1, and the output is one number per sample that leaves 0 … 1: a logit of class "
            "1; --task regression takes labels as amounts"
        )
    if kind == "classification":
        return f"labels are class numbers, and the output has {output.shape[1:].numel()} scores per sample"
    if kind == "reconstruction":
        labels = "there are no labels" if batch.labels is None else "labels are whole numbers"
        return f"{labels}, and the output is shaped as the input, which it is to meet"
    assert batch.labels is not None
    if batch.labels.is_floating_point():
        return "labels are numbers with a point, which the output is to meet"
    return (
        "labels are whole numbers, and the output is one number per sample, which is to meet them (of two "
        "classes: a probability, since it lies in 0 … 1); --loss binary-cross-entropy is of a logit"
    )


def root(mean: Tensor, share: float, group: Group) -> Tensor:
    """sqrt of the mean over all processes, with its exact gradient for this process's part.

    `mean` is of this process's samples, `share` weighs it so that the average over processes is the mean over
    all. d sqrt(m) = dm / (2 sqrt(m)); at zero the gradient is taken as zero.
    """
    value = group.average(mean.detach() * share).sqrt()
    slope = torch.where(value > 0, 0.5 / value.clamp_min(torch.finfo(value.dtype).tiny), 0.0)
    surrogate = mean * share * slope
    return surrogate + (value - surrogate).detach()


@dataclass
class Penalty:
    """L1 · Σ|w| + L2/2 · Σw² over chosen parameters; the gradient of the second part is L2 · w."""

    l1: float
    l2: float
    parameters: list[Tensor] = field(default_factory=list)

    def __call__(self) -> Tensor | None:
        if not self.parameters or not (self.l1 or self.l2):
            return None
        total = torch.zeros((), device=self.parameters[0].device)
        for weight in self.parameters:
            if self.l1:
                total = total + self.l1 * weight.abs().sum()
            if self.l2:
                total = total + self.l2 / 2 * weight.square().sum()
        return total


class Objective:
    """What the data asks of the outputs: the task's loss, the teacher's, or shares of both.

    Attributes:
        task: None until the first samples tell.
    """

    def __init__(
        self,
        settings: TrainSettings,
        dataset: Dataset,
        teacher: Teacher | None,
        group: Group,
        batch_size: int,
    ) -> None:
        self.settings, self.dataset, self.teacher, self.group = settings, dataset, teacher, group
        self.batch_size = batch_size
        self.task: Task | None = None

    def __call__(self, outputs: Sequence[Tensor], batch: Batch, share: float) -> Tensor:
        """The loss of the samples `batch` of this process, weighted by `share`.

        Args:
            outputs: of the model, then of the layers in `match`; `batch` lies on their device.

        Raises:
            DataError: labels are missing or do not fit the outputs; names the sample.
            UnsupportedError: the outputs do not depend on the weights smoothly: nothing could be learnt.
        """
        output = outputs[0].float()
        weight = 0.0 if self.teacher is None else self.settings.teacher_weight
        parts: list[Tensor] = []
        if weight < 1:
            task = self.task_for(output, batch)
            mean = task.mean(output, self._target(task, output, batch))
            value = root(mean, share, self.group) if task.loss == "rmse" else mean * share
            parts.append((1 - weight) * value)
        if self.teacher is not None:
            features = outputs[len(outputs) - len(self.settings.match) :]
            imitated, matched = self.teacher.losses(
                batch.inputs, output, features, self._are_scores(output, batch)
            )
            parts.append(weight * imitated * share)
            if matched is not None:
                parts.append(self.settings.match_weight * matched * share)
        total = torch.stack(parts).sum()
        if torch.is_grad_enabled() and not total.requires_grad:
            raise UnsupportedError(
                "train: the output has no gradient, so no weight can learn from it",
                got="whole numbers, as arg-max gives them, or nothing that a trained weight leads to",
                remedy="the scores that it is chosen from: --output-index of another output, or a model "
                "that ends in them",
            )
        return total

    @property
    def imitates_only(self) -> bool:
        """Whether labels have no share in the loss."""
        return self.teacher is not None and self.settings.teacher_weight == 1

    def sentence(self) -> str:
        """Which loss is minimised, and why."""
        share = 0.0 if self.teacher is None else self.settings.teacher_weight
        if self.task is None or self.imitates_only:
            return "the loss is the distance to the teacher's answers; labels are not used"
        names = {"mse": "the mean squared error", "rmse": "the root of the mean squared error"}
        own = f"{names.get(self.task.loss, self.task.loss)} ({self.task.why})"
        if not share:
            return f"the loss is {own}"
        return f"the loss is {share:.0%} the distance to the teacher's answers, {1 - share:.0%} {own}"

    def settle(
        self, predict: Callable[..., tuple[Tensor, ...]], dataset: Dataset, device: torch.device
    ) -> None:
        """Choose the task by the first samples.

        Raises:
            DataError: there are none, or they have no labels for it.
        """

        def answer(batch: Batch) -> Tensor:
            return predict(*(x.to(device) for x in batch.inputs))[0].float()

        self.task_for(*first_answers(answer, dataset))

    def task_for(self, output: Tensor, batch: Batch) -> Task:
        """The task; "auto" is resolved by the first batch."""
        if self.task is None:
            self.task = Task.choose(self.settings, output, batch, self.dataset.spec, self.dataset.classes)
        return self.task

    def _are_scores(self, output: Tensor, batch: Batch) -> bool:
        """Whether outputs are scores of classes: the task tells, or their shape where nothing is labelled."""
        if output.dim() != 2 or output.shape[1] < 2:
            return False
        told = (
            self.settings.task != "auto" or batch.labels is not None or output.shape == batch.inputs[0].shape
        )
        return not told or self.task_for(output, batch).kind == "classification"

    def _target(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        """The target; a label that does not fit is looked up in the data's own order, to name its sample."""
        try:
            return task.target(output, batch)
        except DataError:
            first = 0
            for part in self.dataset.batches(self.batch_size):
                if task.kind == "classification":
                    task.target(output[:1].expand(len(part), *output.shape[1:]), part, first)
                first += len(part)
            raise
