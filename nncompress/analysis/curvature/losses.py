"""What is differentiated: the loss of the task, or a random scalar whose derivative tells the curvature."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.data import Batch
from nncompress.dtypes import dtype_name
from nncompress.errors import DataError, UnsupportedError


def classifies(first: Tensor, labels: Tensor | None) -> bool:
    """Scores per class (the answer) with class numbers as labels; without labels nobody can tell."""
    if labels is None or labels.is_floating_point():
        return False
    return first.is_floating_point() and first.dim() == 2 and first.shape[1] > 1


def check_labels(first: Tensor, labels: Tensor | None, spec: str) -> Tensor:
    """The labels, if they fit the answer.

    Raises:
        DataError: they do not, or there are none, or the answer has no gradient.
    """
    if labels is None:
        raise DataError(f"{spec} has no labels")
    if not first.is_floating_point():
        raise DataError(
            "the model answers in whole numbers, which have no gradient",
            got=f"{dtype_name(first.dtype)} {list(first.shape)}",
            expected="scores per class, or floating-point numbers",
            remedy="a criterion that needs no labels: --criterion reconstruction, or leave the labels out",
        )
    if classifies(first, labels):
        if labels.dim() != 1 or int(labels.max()) >= first.shape[1]:
            raise DataError(
                f"labels of {spec} do not fit the model",
                got=f"shape {list(labels.shape)}, up to {int(labels.max())}",
                expected=f"one class below {first.shape[1]} per sample",
            )
    elif labels.numel() != first.numel():
        raise DataError(
            f"labels of {spec} do not fit the model",
            got=f"{list(labels.shape)}",
            expected=f"{list(first.shape)}",
        )
    return labels


def task_loss(answer: Tensor, batch: Batch, spec: str) -> Tensor:
    """The sum over samples of cross entropy (class numbers) or half the squared error (other targets).

    Raises:
        DataError: the labels do not fit the answer.
    """
    labels = check_labels(answer, batch.labels, spec)
    if classifies(answer, labels):
        return F.cross_entropy(answer, labels.long(), reduction="sum")
    return 0.5 * (answer - labels.reshape(answer.shape).to(answer.dtype)).square().sum()


def curvature_loss(
    outputs: tuple[Tensor, ...], batch: Batch, generator: torch.Generator, answer: int | None
) -> Tensor:
    """A random scalar; the mean square of its derivative in a direction is the Gauss-Newton curvature.

    Classifiers: cross entropy with labels drawn from the model's own prediction, so that half of it is the
    Kullback-Leibler divergence to second order (Martens 2020, "New Insights and Perspectives on the Natural
    Gradient Method"). Otherwise: a Gaussian projection of every output, in units of its own spread.

    Args:
        answer: the output that labels belong to, where that is known.

    Raises:
        UnsupportedError: all outputs are whole numbers or truth values.
    """
    if answer is not None and classifies(outputs[answer], batch.labels):
        chances = outputs[answer].detach().softmax(1)
        usable = chances.isfinite().all(1)  # scores of NaN, or -inf all, predict nothing
        if usable.any():
            drawn = torch.multinomial(chances[usable], 1, generator=generator)[:, 0]
            return F.cross_entropy(outputs[answer][usable], drawn, reduction="sum")
    total = torch.zeros(())
    for output in outputs:
        if output.is_floating_point() and output.requires_grad:
            noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
            finite = output.isfinite()  # scores of -inf are masked, whatever the weights
            spread = _spread(output.detach()[finite]) * (output.numel() / len(batch)) ** 0.5
            total = total + (noise * output).masked_fill(~finite, 0).sum() / spread
    if not total.requires_grad:
        raise UnsupportedError(
            "no output of the model changes smoothly with its weights",
            got=", ".join(f"{dtype_name(y.dtype)} {list(y.shape)}" for y in outputs),
            expected="at least one of floats: scores rather than the chosen class",
            remedy="export the model without its last argmax or comparison; or leave out --data",
        )
    return total


def _spread(values: Tensor) -> float:
    """The standard deviation of the values [n], the size of a single one; never zero."""
    if not values.numel():
        return 1.0
    return max(float(values.std() if len(values) > 1 else values.abs()), 1e-12)
