"""What is minimised: the task, the teacher's answers and features, and the penalties on weights.

All data terms are means over the records of the whole step, also when several processes share it: each
weighs its part by the share of records it has, and a root is taken of the sum over all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.analysis.accuracy import class_labels, target_like, task_of
from nncompress.data import Batch
from nncompress.errors import DataError
from nncompress.train.distributed import Group
from nncompress.train.settings import TrainSettings


@dataclass(frozen=True)
class Task:
    """What the outputs are held against, and with which loss."""

    kind: str
    loss: str
    origin: str
    label_smoothing: float = 0.0

    @classmethod
    def choose(cls, settings: TrainSettings, output: Tensor, batch: Batch, origin: str) -> Task:
        """Resolve "auto".

        Raises:
            DataError: the data has no labels for the task.
        """
        kind = task_of(output, batch, origin) if settings.task == "auto" else settings.task
        loss = settings.loss
        if loss == "auto":
            loss = "cross-entropy" if kind == "classification" else "mse"
        if (kind == "classification") != (loss == "cross-entropy"):
            raise DataError(
                f"{origin}: the loss does not fit the task", got=f"--loss {loss}", expected=f"one for {kind}"
            )
        return cls(kind, loss, origin, settings.label_smoothing)

    def target(self, output: Tensor, batch: Batch) -> Tensor:
        """Classes [N], or targets shaped as `output`.

        Raises:
            DataError: there are none, or they do not fit the output.
        """
        if self.kind == "classification":
            return class_labels(output, batch.labels, self.origin, 0)
        given = batch.inputs[0] if self.kind == "reconstruction" else batch.labels
        return target_like(output, given, self.origin, self.kind).to(output.dtype)

    def mean(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over records, before any root."""
        if self.loss == "cross-entropy":
            return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)
        return F.mse_loss(output, target)


def root(mean: Tensor, share: float, group: Group) -> Tensor:
    """sqrt of the mean over all processes, with its exact gradient for this process's part.

    `mean` is of this process's records, `share` weighs it so that the average over processes is the mean over
    all. d sqrt(m) = dm / (2 sqrt(m)); at zero the gradient is taken as zero.
    """
    value = group.average(mean.detach() * share).sqrt()
    slope = torch.where(value > 0, 0.5 / value.clamp_min(torch.finfo(value.dtype).tiny), 0.0)
    surrogate = mean * share * slope
    return surrogate + (value - surrogate).detach()


def imitation(student: Tensor, teacher: Tensor, temperature: float, classification: bool) -> Tensor:
    """T² KL(teacher || student) of the softened scores (Hinton, Vinyals & Dean 2015), else their MSE."""
    if not classification:
        return F.mse_loss(student, teacher)
    soft = F.log_softmax(student / temperature, 1)
    wanted = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(soft, wanted, reduction="batchmean", log_target=True) * temperature**2


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers of |s − t|² / |t|²: layers of every scale count alike."""
    parts = [
        (s.float() - t.float()).square().mean() / t.float().square().mean().clamp_min(1e-12)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(parts).mean()


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
