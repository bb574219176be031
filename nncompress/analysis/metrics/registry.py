"""The metrics by name, imported when named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nncompress.analysis.metrics.base import Metric
from nncompress.errors import UsageError
from nncompress.extensions import Registry

OWN = {
    "top1": "nncompress.analysis.metrics.classification:Top1",
    "top5": "nncompress.analysis.metrics.classification:Top5",
    "f1": "nncompress.analysis.metrics.classification:F1",
    "miou": "nncompress.analysis.metrics.classification:MeanIoU",
    "map": "nncompress.analysis.metrics.detection:MeanAveragePrecision",
    "rmse": "nncompress.analysis.metrics.continuous:Rmse",
    "mae": "nncompress.analysis.metrics.continuous:Mae",
    "mse": "nncompress.analysis.metrics.continuous:Mse",
    "cosine": "nncompress.analysis.metrics.continuous:Cosine",
    "perplexity": "nncompress.analysis.metrics.sequences:Perplexity",
    "wer": "nncompress.analysis.metrics.sequences:ErrorRate",
}
METRICS: Registry[Callable[..., Any]] = Registry(  # classes; of other packages also functions, as in `user`
    "nncompress.metrics", OWN, lambda name, it: "" if callable(it) else f"{it!r:.80} is no function or class"
)
TASK_METRICS = {"classification": "top1", "regression": "rmse", "reconstruction": "mse"}


def named_metric(name: str) -> Metric:
    """A metric of this name, or of the user's own code (`file.py:NAME`), ready to measure one model.

    Raises:
        UsageError: there is none.
        ExtensionError: it is another package's, which is broken.
    """
    from nncompress.analysis.metrics.user import metric_of_code, user_metric  # torch: tables need names only

    if not isinstance(name, str):
        raise UsageError("a metric is named by a text", got=f"{name!r:.80}", expected=", ".join(METRICS))
    if ":" in name:
        return user_metric(name)
    if name not in METRICS:
        raise UsageError("unknown metric", got=name, expected=", ".join(METRICS) + ", or file.py:function")
    return metric_of_code(name, METRICS[name])


def metric_of(task: str) -> Metric:
    """What a task's answers are measured by.

    Raises:
        UsageError: there is no such task.
    """
    if task not in TASK_METRICS:
        raise UsageError("unknown task", got=task, expected=", ".join(TASK_METRICS))
    return named_metric(TASK_METRICS[task])
