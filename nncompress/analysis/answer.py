"""Which output of a model is its answer, along which dim its samples lie, and what labels ask of it.

| labels              | an output that fits                                       | task           |
|---------------------|-----------------------------------------------------------|----------------|
| integers [N]        | float [N, C], C above every label (and above 1): scores   | classification |
| integers [N]        | integers [N] or [N, 1]: class numbers                     | classification |
| 0 and 1 [N]         | float [N] or [N, 1]: a logit, or a probability            | classification |
| other integers [N]  | float [N] or [N, 1]                                       | regression     |
| floats [N, ...]     | numbers of the same shape; one each may be [N] or [N, 1]  | regression     |
| none                | floats shaped as the first input                          | reconstruction |

Of a model with several outputs the one that fits is taken; where several fit, the user is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.labels import MEASURES, is_one_number, task_of
from nncompress.analysis.metrics.base import Metric
from nncompress.analysis.metrics.registry import TASK_METRICS, metric_of
from nncompress.data import Batch, Dataset
from nncompress.errors import DataError, UsageError, VerificationError
from nncompress.ir import Model

Predict = Callable[..., Any]  # input tensors → a tensor or array, or a tuple of them: a Model, or Runner.run
TASKS = ("auto", *TASK_METRICS)
ANSWER = "answer"  # the key in a model's metadata: the number of the output that labels belong to
PROBED = 2  # samples that tell which output is the answer


# -- which output ------------------------------------------------------------------------------------------


def known_answer(model: Model) -> int | None:
    """The output of `model` that labels belong to; None where nobody said or found which of several."""
    stated = model.metadata.get(ANSWER)
    if isinstance(stated, int) and 0 <= stated < len(model.outputs):
        return stated
    return 0 if len(model.outputs) == 1 else None


def answer_index(model: Model, dataset: Dataset | None = None) -> int:
    """The output of `model` that labels belong to: as it is known, else the one that those of `dataset` fit.

    Raises:
        DataError: it has several, and nobody said or found which.
    """
    if dataset is not None:
        settle_answer(model, dataset)
    known = known_answer(model)
    if known is not None:
        return known
    raise DataError(
        f"the model has {len(model.outputs)} outputs, and labels may belong to any of them",
        got=", ".join(model.outputs),
        remedy="name one: --output-index 1",
    )


def index_of(names: Sequence[str], text: str) -> int:
    """The output that `--output-index TEXT` means: its number, or its name.

    Raises:
        UsageError: there is none.
    """
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UsageError(
        f"the model has no output {text}",
        expected=", ".join(f"{i} ({name})" for i, name in enumerate(names)),
    )


def settle_answer(model: Model, dataset: Dataset) -> bool:
    """Remember with the model which of its outputs the labels of `dataset` fit, where exactly one does.

    Returns: whether that was found now.
    """
    if len(model.outputs) < 2 or ANSWER in model.metadata or not dataset.has_labels:
        return False
    for batch in dataset.batches(dataset.fixed_batch or PROBED, limit=dataset.fixed_batch or PROBED):
        fitting = Answers(model, dataset, "auto").fitting(batch)
        if len(fitting) == 1:
            model.metadata[ANSWER] = fitting[0]
            return True
        break
    return False


class Answers:
    """What a model answers, sample by sample.

    Args:
        task: one of `TASKS`; "auto" is resolved by the first batch.
        output: the number of an output; None: the one that the labels fit, told by the first batch.
        metric: what the answers are held against the labels by; None: the task's own.

    Attributes:
        task, output: as they were resolved.
    """

    def __init__(
        self,
        predict: Predict,
        dataset: Dataset,
        task: str,
        output: int | None = None,
        metric: Metric | None = None,
    ) -> None:
        self._predict, self._dataset, self._metric = predict, dataset, metric
        if output is None and isinstance(predict, Model):
            output = predict.metadata.get(ANSWER)
        self.task, self.output = task, output
        self._dim: int | None = None

    def of(self, batch: Batch, first_sample: int) -> Tensor:
        """The answers [N, ...] on the CPU.

        Raises:
            DataError: no output fits the labels, or several do.
            VerificationError: an answer is NaN or infinite (scores may be -inf), or not one per sample.
        """
        outputs = outputs_of(self._predict, batch.inputs)
        if self.output is None:
            self.output = self._chosen(outputs, batch)
        if not 0 <= self.output < len(outputs):
            raise UsageError(f"the model has no output {self.output}", expected=f"0 to {len(outputs) - 1}")
        output = outputs[self.output]
        if self._dim is None:
            self._dim = output_dims(self._predict, batch, outputs)[self.output]
        if self._dim is None or not has_samples(output, self._dim, len(batch)):
            if len(batch) == 1 and self._dataset.fixed_batch is None:
                return self.of(twice(batch), first_sample)[:1]
            raise VerificationError(
                "the model does not give one output per sample",
                got=f"an output of shape {list(output.shape)} for {len(batch)} samples",
            )
        result = output.movedim(self._dim, 0).detach().cpu()
        if self._metric is None:
            if self.task == "auto":
                self.task = task_of(result, batch, self._dataset.spec, self._dataset.classes)
            self._metric = metric_of(self.task)
        check_finite(result, first_sample, masked=self._metric.masked)
        return result

    def fitting(self, batch: Batch) -> list[int]:
        """The numbers of the outputs that the labels fit: as scores or class numbers if any does."""
        return self._fitting(outputs_of(self._predict, batch.inputs), batch)

    def _fitting(self, outputs: Sequence[Tensor], batch: Batch) -> list[int]:
        dims = output_dims(self._predict, batch, outputs)
        moved = {i: outputs[i].movedim(d, 0) for i, d in enumerate(dims) if d is not None}
        for metric in self._possible(batch):
            found = [i for i, x in moved.items() if metric.fits(x, batch, self._dataset.classes)]
            if found:  # as scores rather than as the one number that tells two classes
                return [i for i in found if not is_one_number(moved[i])] or found
        return []

    def _possible(self, batch: Batch) -> list[Metric]:
        if self._metric is not None:
            return [self._metric]
        if self.task != "auto":
            return [metric_of(self.task)]
        possible = [metric_of(task) for task in TASK_METRICS]
        return [m for m in possible if m.needs_labels == (batch.labels is not None)]

    def _chosen(self, outputs: Sequence[Tensor], batch: Batch) -> int:
        if len(outputs) == 1:
            return 0
        fitting = self._fitting(outputs, batch)
        if len(fitting) == 1:
            return fitting[0]
        shapes = ", ".join(f"{i}: {list(x.shape)}" for i, x in enumerate(outputs))
        which = "several of the model's outputs" if fitting else "none of the model's outputs"
        raise DataError(
            f"{self._dataset.spec}: the labels fit {which}",
            got=f"outputs {shapes} for {len(batch)} samples",
            expected="one output that they fit",
            remedy=f"name it: --output-index {fitting[0]}" if fitting else MEASURES,
        )


# -- where its samples lie -----------------------------------------------------------------------------------


def outputs_of(predict: Predict, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All outputs, as tensors.

    Raises:
        DataError: the model cannot run on this data.
    """
    try:
        with torch.inference_mode():
            result = predict(*inputs)
    except (RuntimeError, IndexError, ValueError) as problem:  # such as a token beyond the vocabulary
        raise DataError(
            "the model could not run on this data", got=f"{type(problem).__name__}: {problem}"[:300]
        ) from problem
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return tuple(torch.from_numpy(np.asarray(p)) if not isinstance(p, Tensor) else p for p in parts)


def has_samples(output: Tensor, dim: int, count: int) -> bool:
    """Whether it has a row for each of so many samples along `dim`."""
    return output.dim() > dim and output.shape[dim] == count


def twice(batch: Batch) -> Batch:
    """A batch of one sample with it twice: a `squeeze()` takes the dim of a batch of 1, too."""
    return batch.part(torch.zeros(2, dtype=torch.int64))


def output_dims(predict: Predict, batch: Batch, outputs: Sequence[Tensor]) -> tuple[int | None, ...]:
    """Per output the dim along which the samples of `batch` lie, None where it has no such dim.

    Unless it is the first dim of all inputs and of all outputs that have one of that size, a run of fewer
    samples tells which dim shrinks.
    """
    count = len(batch)
    possible = [[d for d, size in enumerate(x.shape) if size == count] for x in outputs]
    samples_first = (
        not any(batch.dims) and None not in batch.dims and all(not p or p[0] == 0 for p in possible)
    )
    if any(possible) and not samples_first and count > 1:
        try:
            fewer = outputs_of(predict, batch.part(slice(0, count - 1)).inputs)
        except (DataError, UsageError):  # of a fixed batch
            return tuple(p[0] if p else None for p in possible)
        possible = [
            [d for d in p if few.dim() == x.dim() and few.shape[d] == count - 1]
            for p, x, few in zip(possible, outputs, fewer)
        ]
    return tuple(p[0] if p else None for p in possible)


def check_finite(result: Tensor, first_sample: int, *, masked: bool = False) -> None:
    """Refuse NaN and infinity in outputs [N, ...], naming the sample.

    Args:
        masked: scores of classes, of which some may be -inf, but not all of a sample.
    Raises:
        VerificationError: naming the first such sample, counted from `first_sample`.
    """
    if not (result.is_floating_point() or result.is_complex()) or not result.numel():
        return
    finite = torch.isfinite(result)
    if masked:
        finite = (finite | (result == -torch.inf)) & finite.any(-1, keepdim=True)
    good = finite.reshape(len(result), -1).all(1)
    if not good.all():
        raise VerificationError(
            f"the model's output for sample {first_sample + int(good.int().argmin())} is NaN or infinite",
            remedy="look at what was done to the model last: nncompress inspect",
        )
