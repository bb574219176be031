"""How a model does on held-out records, in one pass: the mean of the loss, and the task's own measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.analysis.answer import answer_index
from nncompress.data import Dataset
from nncompress.errors import DataError, VerificationError
from nncompress.ir import Model
from nncompress.progress import Progress
from nncompress.train.loss.objective import Task
from nncompress.train.settings import TrainSettings


def validate(
    predict: Callable[..., tuple[Tensor, ...]],
    dataset: Dataset,
    task: Task,
    batch_size: int,
    device: torch.device,
    progress: Progress,
    limit: int | None = None,
) -> dict[str, float]:
    """`loss`, and `top1` for classification, over all (or `limit`) records.

    Args:
        predict: the model in evaluation mode, inputs -> a tuple of outputs.

    Raises:
        DataError: labels do not fit.
        VerificationError: the loss is not finite.
    """
    task = replace(task, origin=dataset.spec)
    total = right = 0.0
    records = elements = 0
    for batch in dataset.batches(dataset.measuring_batch(batch_size), limit):
        progress.step("validating", records, dataset.planned_records(limit))
        with torch.inference_mode():
            output = predict(*(x.to(device) for x in batch.inputs))[0].float().cpu()
            target = task.target(output, batch, records)
            if task.loss == "cross-entropy":
                total += float(F.cross_entropy(output, target, reduction="sum"))
                right += int((output.argmax(1) == target).sum())
                elements += len(batch)
            else:
                total += float((output.double() - target.double()).square().sum())
                elements += output.numel()
        records += len(batch)
    loss = total / max(1, elements)
    if not math.isfinite(loss):
        raise VerificationError("the validation loss is not finite", got=str(loss), remedy="a smaller --lr")
    if task.loss == "cross-entropy":
        return {"loss": loss, "top1": right / records}
    return {"loss": math.sqrt(loss) if task.loss == "rmse" else loss}


def first_task(model: Model, dataset: Dataset, settings: TrainSettings) -> Task:
    """The task, "auto" resolved by the first records. The model is on the CPU.

    Raises:
        DataError: the data has no records, or no labels for the task.
    """
    for batch in dataset.batches(settings.batch, limit=settings.batch):
        with torch.no_grad():
            output = model.outputs_of(*batch.inputs)[answer_index(model, dataset)]
        return Task.choose(settings, output, batch, dataset.spec)
    raise DataError(f"{dataset.spec} has no samples")
