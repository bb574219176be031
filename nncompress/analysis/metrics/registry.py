"""The metrics by name, imported when named."""

from __future__ import annotations

from importlib import import_module

from nncompress.analysis.metrics.base import Metric
from nncompress.errors import UsageError

METRICS = {
    "top1": "classification:Top1",
    "top5": "classification:Top5",
    "f1": "classification:F1",
    "miou": "classification:MeanIoU",
    "rmse": "continuous:Rmse",
    "mae": "continuous:Mae",
    "mse": "continuous:Mse",
    "cosine": "continuous:Cosine",
    "perplexity": "sequences:Perplexity",
    "wer": "sequences:ErrorRate",
}
TASK_METRICS = {"classification": "top1", "regression": "rmse", "reconstruction": "mse"}


def named_metric(name: str) -> Metric:
    """A metric of this name, or of the user's own code (`file.py:NAME`), ready to measure one model.

    Raises:
        UsageError: there is none.
    """
    if ":" in name:
        from nncompress.analysis.metrics.user import user_metric

        return user_metric(name)
    if name not in METRICS:
        raise UsageError("unknown metric", got=name, expected=", ".join(METRICS) + ", or file.py:function")
    module, _, kind = METRICS[name].partition(":")
    made: Metric = getattr(import_module(f"nncompress.analysis.metrics.{module}"), kind)()
    return made


def metric_of(task: str) -> Metric:
    """What a task's answers are measured by.

    Raises:
        UsageError: there is no such task.
    """
    if task not in TASK_METRICS:
        raise UsageError("unknown task", got=task, expected=", ".join(TASK_METRICS))
    return named_metric(TASK_METRICS[task])
