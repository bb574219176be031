"""What labels ask of a model's answers."""

from __future__ import annotations

from torch import Tensor

from nncompress.data import Batch
from nncompress.dtypes import dtype_name
from nncompress.errors import DataError

MEASURES = (
    "eval, bench, optimize, train --val and quantize --max-drop take another --metric: rmse (numbers), miou "
    "(pixels), map (boxes), perplexity or wer (sequences), FILE.py:NAME"
)


def chosen_classes(result: Tensor) -> Tensor:
    """Class numbers [N] of scores [N, C], or as the model gives them, [N] or [N, 1]."""
    return result.argmax(1) if result.is_floating_point() else result.reshape(-1).long()


def is_one_number(result: Tensor) -> bool:
    """Whether a result [N, ...] is one number per sample."""
    return result.is_floating_point() and result.dim() > 0 and result.numel() == len(result)


def are_two_classes(labels: Tensor | None, classes: int | None = None) -> bool:
    """Whether labels are 0 or 1, one per sample, as whole numbers.

    Args:
        classes: one more than the greatest class number of the whole data, where that is known.
    """
    if labels is None or labels.is_floating_point() or labels.dim() != 1 or (classes or 0) > 2:
        return False
    return bool(((labels == 0) | (labels == 1)).all())


def two_class_labels(
    labels: Tensor | None,
    origin: str,
    first_sample: int,
    amounts: str = "--metric rmse, where labels are amounts",
) -> Tensor:
    """Labels 0 and 1, one per sample, int64 [N]; floats may say them, too.

    Args:
        amounts: how to ask for labels that are no classes.

    Raises:
        DataError: they are others; names the first such sample.
    """
    if labels is None or labels.numel() != len(labels):
        raise DataError(
            f"{origin}: the model's output is one number per sample, the labels are not",
            got="none" if labels is None else str(list(labels.shape)),
            expected="a label 0 or 1 per sample",
            remedy=MEASURES,
        )
    labels = labels.reshape(-1)
    other = (labels != 0) & (labels != 1)
    if other.any():
        sample = int(other.int().argmax())
        raise DataError(
            f"{origin}: sample {first_sample + sample} has a label that one number per sample cannot tell",
            got=f"label {labels[sample].item():g}",
            expected="0 or 1",
            remedy=f"{amounts}; else a model with a score per class",
        )
    return labels.long()


def task_of(result: Tensor, batch: Batch, origin: str, classes: int | None = None) -> str:
    """The task that a result [N, ...] and the labels make likely.

    Args:
        classes: one more than the greatest class number of the whole data, where that is known.

    Raises:
        DataError: there are no labels, and the result is not shaped as the input.
    """
    like_input = result.shape == batch.samples_first()[0].shape
    if batch.labels is None:
        if like_input and batch.inputs[0].is_floating_point():
            return "reconstruction"
        raise DataError(
            f"{origin} has no labels",
            expected="labels, or a model whose output is shaped like its input",
            remedy="what another model answers needs none: eval MODEL OTHER, train --teacher MODEL "
            "--teacher-weight 1",
        )
    if not (batch.labels.is_floating_point() or result.is_floating_point()):
        return "classification"
    if is_one_number(result) and are_two_classes(batch.labels, classes):
        return "classification"
    if batch.labels.is_floating_point() or result.dim() == 1 or (result.dim() == 2 and result.shape[1] == 1):
        return "regression"
    return "reconstruction" if like_input and result.dim() > 2 else "classification"


def class_labels(
    result: Tensor, labels: Tensor | None, origin: str, first_sample: int, remedy: str = MEASURES
) -> Tensor:
    """Labels [N] that name columns of result [N, C], or numbers like those of an integer result [N].

    Args:
        remedy: what else than class numbers can be measured or trained, and how.

    Raises:
        DataError: they are none, or name a class that the result has no column for.
    """
    if labels is None or labels.is_floating_point() or labels.dim() != 1:
        got = "none" if labels is None else f"{dtype_name(labels.dtype)} {list(labels.shape)}"
        if labels is not None and labels.dim() == 2 and bool(((labels != 0).sum(1) == 1).all()):
            remedy = f"class numbers of what is one 1 among zeros: y.argmax(1); or {remedy}"
        raise DataError(
            f"{origin}: classification needs one class number per sample",
            got=got,
            expected="int64 [N]",
            remedy=remedy,
        )
    if not result.is_floating_point() and result.numel() == len(result):
        return labels
    if not result.is_floating_point() or result.dim() != 2 or result.shape[1] < 2:
        raise DataError(
            "the model's output is not one score per class",
            got=f"an output of shape {list(result.shape)}",
            expected="float [N, C] with C at least 2, or class numbers [N]",
            remedy=f"another output of several (--output-index); or {remedy}",
        )
    if int(labels.max()) >= result.shape[1]:
        sample = first_sample + int(labels.argmax())
        raise DataError(
            f"{origin}: sample {sample} has a label that the model has no output for",
            got=f"label {int(labels.max())}",
            expected=f"0 to {result.shape[1] - 1} (the model has {result.shape[1]} outputs)",
            remedy="use data with the classes the model was trained on",
        )
    return labels


def target_like(result: Tensor, target: Tensor | None, origin: str, task: str) -> Tensor:
    """The target shaped as the result; one number per sample may be [N] or [N, 1] on either side."""
    one_each = target is not None and target.numel() == result.numel() == len(result)
    if target is not None and task == "regression" and one_each:
        target = target.reshape(result.shape)
    if target is None or target.shape != result.shape:
        wanted = "input" if task == "reconstruction" else "targets"
        boxes = target is not None and target.dim() == 3 and target.shape[2] == 6
        raise DataError(
            f"{origin}: the {wanted} and the model's output differ in shape",
            got="none" if target is None else str(list(target.shape)),
            expected=str(list(result.shape)),
            remedy="boxes are measured by --metric map, and learnt from a model that finds them: "
            "--teacher MODEL --teacher-weight 1"
            if boxes
            else "save class numbers as integers, or choose another --task",
        )
    return target.double()
