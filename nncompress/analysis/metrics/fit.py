"""Whether a metric is one of these answers and labels, and if not, which ones are."""

from __future__ import annotations

from torch import Tensor

from nncompress.analysis.metrics.base import Metric
from nncompress.analysis.metrics.registry import METRICS, OWN, named_metric
from nncompress.data import Batch, Dataset
from nncompress.errors import DataError, MissingExtraError

OF_ONES_OWN = "FILE.py:NAME of your own"


def check_fit(metric: Metric, output: Tensor, batch: Batch, origin: str) -> None:
    """Refuse answers [N, ...] or labels that `metric` is none of, and name those that are.

    Raises:
        DataError: saying what it takes.
    """
    fitting = [name for name in OWN if name != metric.name and _measures(name, output, batch)]
    metric.check(output, batch, origin, f"--metric {' or '.join([*fitting, OF_ONES_OWN])}")


def require_labels(metric: Metric, dataset: Dataset) -> None:
    """Refuse data without labels where `metric` holds answers against them.

    Raises:
        DataError: there are none.
    """
    if metric.needs_labels:
        free = [name for name in OWN if not getattr(METRICS[name], "needs_labels", True)]
        remedy = (
            f"--metric {' or '.join([*free, OF_ONES_OWN])}; how alike two models are: eval without --metric"
        )
        dataset.require_labels(f"--metric {metric.name}", remedy)


def _measures(name: str, output: Tensor, batch: Batch) -> bool:
    """Whether the metric of this name is one of them, and can be used here."""
    try:
        metric = named_metric(name)
        metric.check(output, batch, "", "")
    except (DataError, MissingExtraError):
        return False
    return batch.labels is not None or not metric.needs_labels
