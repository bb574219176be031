"""Is the smaller model still right? Streamed over data, with the uncertainty of the answer.

A share measured on n records has a standard error: 0.9 points on 846 records at 92 %. Two models measured on
the same records differ by less than that would suggest, because they mostly err on the same ones: compare
them paired (`evaluate_paired`), which looks only at the records where they differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.data import Batch, Dataset
from nncompress.errors import DataError, UsageError, VerificationError
from nncompress.progress import NullProgress, Progress
from nncompress.results import CompareResult, Estimate, EvalResult, OutputDifference, PairedResult

Predict = Callable[..., Any]  # input tensors → a tensor or array, or a tuple of them: a Model, or Runner.run
TASKS = ("auto", "classification", "regression", "reconstruction")
TOP = 5
Z_95 = 1.959963984540054


def evaluate(
    predict: Predict,
    dataset: Dataset,
    task: str = "auto",
    *,
    batch_size: int = 64,
    limit: int | None = None,
    output: int = 0,
    progress: Progress | None = None,
) -> EvalResult:
    """Measure a model on labelled data (or on its own inputs, for reconstruction).

    Args:
        task: `classification` (outputs [N, C], integer labels [N]: top-1, top-5), `regression` (outputs
            and targets of one shape: RMSE), `reconstruction` (outputs shaped like the first input: MSE), or
            `auto`: regression for floating targets or one output number, reconstruction where there are no
            labels or the output is an image like the input, else classification.
        limit: use this many records, spread over the data.
        output: which output of a model with several.
    Raises:
        DataError: labels are missing or do not fit the outputs.
        VerificationError: an output is NaN or infinite.
    """
    if task not in TASKS:
        raise UsageError("unknown task", got=task, expected=", ".join(TASKS))
    if task in ("classification", "regression"):
        dataset.require_labels(task)
    records = elements = right = right_in_five = 0
    squared = 0.0
    classes: int | None = None
    for batch in _reported(dataset, batch_size, limit, "evaluating", progress):
        result = _checked(_output(predict, batch.inputs, output), len(batch), records)
        if task == "auto":
            task = task_of(result, batch, dataset.spec)
        if task == "classification":
            labels = class_labels(result, batch.labels, dataset.spec, records)
            classes = result.shape[1]
            right += int((result.argmax(1) == labels).sum())
            best = result.topk(min(TOP, classes), dim=1).indices
            right_in_five += int((best == labels[:, None]).any(1).sum())
        else:
            target = batch.inputs[0] if task == "reconstruction" else batch.labels
            squared += float(
                (result.double() - target_like(result, target, dataset.spec, task)).square().sum()
            )
            elements += result.numel()
        records += len(batch)
    if records == 0:
        raise DataError(f"{dataset.spec} gave no records to evaluate on")
    if task != "classification":
        mse = squared / elements
        if task == "regression":
            return EvalResult(dataset.spec, task, records, rmse=math.sqrt(mse))
        return EvalResult(dataset.spec, task, records, mse=mse)
    top1 = right / records
    return EvalResult(
        dataset.spec,
        task,
        records,
        top1=top1,
        top5=right_in_five / records if classes is not None and classes > TOP else None,
        top1_standard_error=math.sqrt(top1 * (1 - top1) / records),
    )


def evaluate_paired(
    original: Predict,
    changed: Predict,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    output: int = 0,
    progress: Progress | None = None,
) -> PairedResult:
    """Top-1 of two classifiers on the same records, with the interval of their difference.

    Raises:
        DataError: labels are missing or do not fit the outputs.
        VerificationError: an output is NaN or infinite.
    """
    dataset.require_labels("a paired comparison")
    records = both = only_original = only_changed = 0
    for batch in _reported(dataset, batch_size, limit, "comparing accuracy", progress):
        hits = []
        for predict in (original, changed):
            result = _checked(_output(predict, batch.inputs, output), len(batch), records)
            labels = class_labels(result, batch.labels, dataset.spec, records)
            hits.append(result.argmax(1) == labels)
        both += int((hits[0] & hits[1]).sum())
        only_original += int((hits[0] & ~hits[1]).sum())
        only_changed += int((~hits[0] & hits[1]).sum())
        records += len(batch)
    if records == 0:
        raise DataError(f"{dataset.spec} gave no records to compare on")
    return PairedResult(
        records=records,
        top1_original=(both + only_original) / records,
        top1_changed=(both + only_changed) / records,
        only_original=only_original,
        only_changed=only_changed,
        difference=paired_difference(only_original, only_changed, records),
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
        total: records to come, for the progress bar.
    Raises:
        DataError: there are no inputs.
        VerificationError: the outputs differ in number or shape, or are NaN or infinite.
    """
    progress = progress or NullProgress()
    sums: list[_Difference] = []
    records = 0
    for batch in inputs:
        tensors = batch.inputs if isinstance(batch, Batch) else tuple(batch)
        first, second = _outputs(original, tensors), _outputs(changed, tensors)
        if [x.shape for x in first] != [x.shape for x in second]:
            raise VerificationError(
                "the changed model has other outputs than the original",
                got=", ".join(str(list(x.shape)) for x in second),
                expected=", ".join(str(list(x.shape)) for x in first),
            )
        sums = sums or [_Difference() for _ in first]
        count = len(tensors[0])
        for total_of_output, a, b in zip(sums, first, second):
            total_of_output.add(_checked(a, count, records), _checked(b, count, records))
        records += count
        progress.step("comparing outputs", records, total)
    if records == 0:
        raise DataError("there is nothing to compare the models on", expected="at least one input")
    names = names if len(names) == len(sums) else tuple(f"output_{i}" for i in range(len(sums)))
    return CompareResult(records, tuple(s.result(name) for s, name in zip(sums, names)))


class _Difference:
    """Running sums over the batches of one output, in float64."""

    def __init__(self) -> None:
        self.same = self.choices = self.records = 0
        self.cosines = self.energy = self.error = self.max_abs = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        a, b = a.double(), b.double()
        axis = 2 if a.dim() == 3 else 1  # [N, T, C] token scores; else [N, C, ...]
        if a.dim() > 1 and a.shape[axis] > 1:
            same = a.argmax(axis) == b.argmax(axis)
            self.same += int(same.sum())
            self.choices += same.numel()
        flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        norm_a, norm_b = flat_a.norm(dim=1), flat_b.norm(dim=1)
        # Two outputs of zeros point the same way; one of zeros and another do not.
        both_zero = ((norm_a == 0) & (norm_b == 0)).double()
        norms = norm_a * norm_b
        cosine = torch.where(norms > 0, (flat_a * flat_b).sum(1) / norms.clamp(min=1e-300), both_zero)
        self.cosines += float(cosine.sum())
        self.records += len(a)
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
            cosine=self.cosines / self.records,
            sqnr_db=sqnr,
            max_abs=self.max_abs,
        )


def paired_difference(only_original: int, only_changed: int, records: int) -> Estimate:
    """changed - original of two paired shares with its 95 % interval.

    The adjusted Wald interval of Bonett & Price (2012), "Adjusted Wald confidence interval for a difference
    of binomial proportions based on paired data": one record is added to each discordant count.
    """
    p, q = (only_changed + 1) / (records + 2), (only_original + 1) / (records + 2)
    half = Z_95 * math.sqrt(max(0.0, p + q - (p - q) ** 2) / (records + 2))
    low, high = max(-1.0, p - q - half), min(1.0, p - q + half)
    return Estimate((only_changed - only_original) / records, low, high)


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
    total, done = dataset.planned_records(limit), 0
    for batch in dataset.batches(batch_size, limit):
        yield batch
        done += len(batch)
        progress.step(description, done, total)


def _outputs(predict: Predict, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    try:
        with torch.inference_mode():
            result = predict(*inputs)
    except (RuntimeError, IndexError, ValueError) as problem:  # such as a token beyond the vocabulary
        raise DataError(
            "the model could not run on this data", got=f"{type(problem).__name__}: {problem}"[:300]
        ) from problem
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return tuple(torch.from_numpy(p) if isinstance(p, np.ndarray) else p for p in parts)


def _output(predict: Predict, inputs: tuple[Tensor, ...], index: int) -> Tensor:
    outputs = _outputs(predict, inputs)
    if not 0 <= index < len(outputs):
        raise UsageError(f"the model has no output {index}", expected=f"0 to {len(outputs) - 1}")
    return outputs[index]


def _checked(result: Tensor, records: int, first_record: int) -> Tensor:
    if result.dim() == 0 or len(result) != records:
        raise VerificationError(
            "the model does not give one output per record",
            got=f"an output of shape {list(result.shape)} for {records} records",
        )
    finite = torch.isfinite(result).reshape(records, -1).all(1)
    if not finite.all():
        record = first_record + int(finite.int().argmin())
        raise VerificationError(
            f"the model's output for record {record} is NaN or infinite",
            remedy="look at what was done to the model last: nncompress inspect",
        )
    return result.detach().cpu()


def task_of(result: Tensor, batch: Batch, origin: str) -> str:
    like_input = result.shape == batch.inputs[0].shape
    if batch.labels is None:
        if like_input and batch.inputs[0].is_floating_point():
            return "reconstruction"
        raise DataError(
            f"{origin} has no labels",
            expected="labels, or a model whose output is shaped like its input",
            remedy="what another model answers needs none: eval MODEL OTHER, train --teacher MODEL "
            "--teacher-weight 1",
        )
    if batch.labels.is_floating_point() or result.dim() == 1 or (result.dim() == 2 and result.shape[1] == 1):
        return "regression"
    return "reconstruction" if like_input and result.dim() > 2 else "classification"


def class_labels(result: Tensor, labels: Tensor | None, origin: str, first_record: int) -> Tensor:
    """Labels [N] that name columns of result [N, C]."""
    if labels is None or labels.is_floating_point() or labels.dim() != 1:
        got = "none" if labels is None else f"{labels.dtype} {list(labels.shape)}".removeprefix("torch.")
        raise DataError(
            f"{origin}: classification needs one class number per record", got=got, expected="int64 [N]"
        )
    if result.dim() != 2 or result.shape[1] < 2:
        raise DataError(
            "the model's output is not one score per class",
            got=f"an output of shape {list(result.shape)}",
            expected="[N, C] with C at least 2",
            remedy="name the task, or choose another output",
        )
    if int(labels.max()) >= result.shape[1]:
        record = first_record + int(labels.argmax())
        raise DataError(
            f"{origin}: record {record} has a label that the model has no output for",
            got=f"label {int(labels.max())}",
            expected=f"0 to {result.shape[1] - 1} (the model has {result.shape[1]} outputs)",
            remedy="use data with the classes the model was trained on",
        )
    return labels


def target_like(result: Tensor, target: Tensor | None, origin: str, task: str) -> Tensor:
    """The target shaped as the result; one number per record may be [N] or [N, 1] on either side."""
    one_each = target is not None and target.numel() == result.numel() == len(result)
    if target is not None and task == "regression" and one_each:
        target = target.reshape(result.shape)
    if target is None or target.shape != result.shape:
        wanted = "input" if task == "reconstruction" else "targets"
        raise DataError(
            f"{origin}: the {wanted} and the model's output differ in shape",
            got="none" if target is None else str(list(target.shape)),
            expected=str(list(result.shape)),
            remedy="save class numbers as integers, or choose another --task",
        )
    return target.double()
