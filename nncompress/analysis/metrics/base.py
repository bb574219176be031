"""What a metric is, and the scores of one model by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from nncompress.dtypes import dtype_name
from nncompress.errors import DataError
from nncompress.results import Estimate

if TYPE_CHECKING:
    from torch import Tensor

    from nncompress.data import Batch


class Scores(Protocol):
    """One model on all samples seen so far, in the order of the data."""

    metric: Metric
    samples: int

    def add(self, output: Tensor, batch: Batch, origin: str) -> None:
        """The answers [N, ...] for the next samples, on the CPU. Raises DataError: labels do not fit them."""

    @property
    def value(self) -> float: ...

    def interval(self) -> Estimate:
        """The value with its 95 % interval over samples."""

    def less(self, other: Scores) -> Estimate:
        """This value less that of another model on the same samples, with the paired 95 % interval.

        Raises:
            DataError: they were measured on different samples, or by different metrics.
        """


class Metric(ABC):
    """How good the answers are.

    Attributes:
        name: as `--metric` takes it.
        title: the heading of its column.
        share: a share, 0 … 1; shown in percent, and its differences in points.
        higher_is_better: else a lower value is better.
        needs_labels: else the inputs say what the answers should be.
        masked: scores may be -inf (classes that are ruled out).
    """

    name: str
    title: str
    share: bool = True
    higher_is_better: bool = True
    needs_labels: bool = True
    masked: bool = False

    @abstractmethod
    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        """Whether `output` [N, ...] can be what the labels of `batch` speak of.

        Args:
            classes: one more than the greatest class number of the whole data, where that is known.
        """

    def check(self, output: Tensor, batch: Batch, origin: str, remedy: str) -> None:
        """Refuse answers [N, ...] or labels that this is no metric of.

        Args:
            remedy: which metrics are.

        Raises:
            DataError: saying what it takes.
        """
        if not self.fits(output, batch, None):
            labels = batch.labels
            given = (
                "no labels" if labels is None else f"labels {dtype_name(labels.dtype)} {list(labels.shape)}"
            )
            raise DataError(
                f"{origin}: --metric {self.name} does not fit this output and these labels",
                got=f"an output of shape {list(output.shape)} and {given}",
                expected=" ".join((type(self).__doc__ or "").partition("\n\n")[0].split()),
                remedy=remedy,
            )

    @abstractmethod
    def begin(self) -> Scores:
        """Empty scores of one model."""

    def shown(self, value: float) -> float:
        """`value` in the unit that users read: percent for shares."""
        return 100 * value if self.share else value

    def text(self, value: float) -> str:
        """`value` as users read it."""
        return f"{100 * value:.2f} %" if self.share else f"{value:.4g}"

    def unit(self, difference: float) -> str:
        """A difference of two values as users read it, in the unit that `--max-drop` is given in."""
        return f"{100 * difference:.2f} points" if self.share else f"{difference:.4g}"

    def lost(self, before: float, after: float) -> float:
        """How much worse `after` is, in the unit that users read; negative where it is better."""
        change = self.shown(before) - self.shown(after)
        return change if self.higher_is_better else -change


def check_pair(one: Scores, other: Scores) -> None:
    """Refuse scores by different metrics, on different samples, or of answers of different kinds.

    Raises:
        DataError: they are.
    """
    if one.metric.name != other.metric.name:
        raise DataError(
            "two models are measured by different metrics",
            got=f"{other.metric.name} and {one.metric.name}",
            remedy="name one: --metric",
        )
    if one.samples != other.samples:
        raise DataError(
            "two models were measured on different numbers of samples",
            got=f"{other.samples} and {one.samples}",
        )
    thresholds = [threshold_of(each) for each in (other, one)]
    if thresholds[0] != thresholds[1]:
        raise DataError(
            "one model's outputs all lie between 0 and 1, as probabilities, the other's do not, as logits",
            got=f"class 1 above {thresholds[0]} and above {thresholds[1]}",
            remedy="compare models that answer alike; or a metric of your own, --metric FILE.py:NAME",
        )


def threshold_of(scores: Scores) -> float | None:
    """Above which a model's one number per sample was taken for class 1; None: its answers are others."""
    found: float | None = getattr(scores, "threshold", None)
    return found


def settle_threshold(scores: Scores, threshold: float | None) -> None:
    """Take one number per sample as it was taken of the model that this one is compared with."""
    if threshold is not None and hasattr(scores, "settle"):
        scores.settle(threshold)
