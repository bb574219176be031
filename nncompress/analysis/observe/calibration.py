"""The range of values that each activation takes on calibration data, and which part of it int8 should cover.

Every activation keeps one histogram that grows with the data, so that nothing but counts is held, whatever
the number of samples. Of a batch with very many values every k-th is counted; the least and the greatest are
those of all. A range is then chosen from the counts:

| method     | range                                                                                        |
|------------|----------------------------------------------------------------------------------------------|
| min-max    | all that was seen                                                                            |
| percentile | all but the outer share on each side                                                         |
| mse        | the one with the least squared error after rounding and clipping (Choukroun et al. 2019)     |
| entropy    | the one whose rounded distribution is nearest in Kullback-Leibler divergence (Migacz 2017)   |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.observe.batch_size import quick_batch
from nncompress.analysis.observe.statistics import observe
from nncompress.analysis.observe.walk import Inputs
from nncompress.errors import DataError, UnsupportedError
from nncompress.ir.formats.qdq import QParams
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.places import place
from nncompress.progress import Progress

if TYPE_CHECKING:
    from nncompress.data import Dataset

BINS = 4096  # on each side of zero
FEW = 16  # samples below which ranges are a guess
MOST = (
    1 << 18
)  # values of an activation that are counted of each batch: more tell no more of their distribution


class Histogram:
    """Counts of values in equal bins on both sides of zero; bin k holds [k · width, (k + 1) · width).

    A value outside doubles the width until it fits, so at least half of the bins of the wider side are used.

    Attributes:
        low, high: least and greatest value seen, exactly.
        counts: int64 [2 · BINS]; bin k is at index k + BINS.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.width = 0.0
        self.counts = np.zeros(2 * BINS, dtype=np.int64)

    def add(self, values: Tensor) -> None:
        """Count the values of a float tensor of any shape.

        Raises:
            FloatingPointError: one is NaN or infinite.
        """
        values = values.detach().float().flatten()
        if not values.numel():
            return
        low, high = (float(v) for v in torch.aminmax(values))  # NaN if any value is
        if not (math.isfinite(low) and math.isfinite(high)):
            raise FloatingPointError
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(-low, high)
        if reach == 0:
            self.counts[BINS] += values.numel()
            return
        if self.width == 0:
            self.width = reach / (BINS - 1)
        while reach >= BINS * self.width:
            self.counts = _merged(self.counts)
            self.width *= 2
        bound, every = BINS * self.width, -(-values.numel() // MOST)
        while math.gcd(every, values.numel()) > 1:  # not always of the same column or channel
            every += 1
        values = values[::every]
        self.counts += torch.histc(values, 2 * BINS, -bound, bound).numpy().astype(np.int64)

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin."""
        return (np.arange(-BINS, BINS) + 0.5) * self.width


def _merged(counts: np.ndarray) -> np.ndarray:
    """Bins of twice the width: bin k goes to bin floor(k / 2)."""
    half = counts.reshape(-1, 2).sum(1)
    quarter = BINS // 2
    return np.concatenate([np.zeros(quarter, np.int64), half, np.zeros(quarter, np.int64)])


def histograms(
    model: Model,
    nodes: Sequence[fx.Node],
    data: Dataset,
    *,
    limit: int | None,
    batch_size: int,
    progress: Progress,
    notes: list[str] | None = None,
    together: Mapping[fx.Node, fx.Node] | None = None,
    hooks: Mapping[fx.Node, Sequence[Callable[[Tensor], None]]] | None = None,
) -> dict[fx.Node, Histogram]:
    """Run `data` through the model and count the values of `nodes`.

    Args:
        limit: at most this many samples.
        batch_size: at most so many at a time, and no more than `quick_batch`.
        notes: told where there is so little data that the ranges are a guess.
        together: for nodes with one histogram, one of them.
        hooks: are shown values in the same run.

    Raises:
        DataError: there are no samples, all are the same, or one holds NaN or infinity.
        UnsupportedError: an activation is not finite although the inputs are; the message names it.
    """
    grids = together or {}
    shared = {node: Histogram() for node in dict.fromkeys(grids.get(node, node) for node in nodes)}
    watched = {node: shared[grids.get(node, node)] for node in nodes}
    inputs = {node: Histogram() for node in model.graph.nodes if node.op == "placeholder" and _is_float(node)}
    watches: dict[fx.Node, list[Callable[[Tensor], None]]] = {
        node: [partial(_count, node, inputs[node], node not in watched)] for node in inputs
    }
    for node, histogram in watched.items():
        watches.setdefault(node, []).append(partial(_count, node, histogram, False))
    for node, others in (hooks or {}).items():
        watches.setdefault(node, []).extend(others)
    first: Inputs = ()
    alike = True  # every sample is the first again: constant also where channels are normalised differently

    def batches() -> Iterator[Inputs]:
        nonlocal first, alike
        for batch in data.batches(min(batch_size, quick_batch(model)), limit=limit):
            first = first or batch.part(slice(0, 1)).inputs
            alike = alike and all(torch.equal(x, y.expand_as(x)) for x, y in zip(batch.inputs, first))
            yield batch.inputs

    said = "calibrating activations"
    samples = observe(model, batches(), watches, progress=progress, total=limit, description=said)
    if not samples:
        raise DataError("the calibration data is empty", expected="at least one sample")
    constant = [n for n, histogram in inputs.items() if histogram.low == histogram.high]
    if constant and len(constant) == sum(
        n.op == "placeholder" for n in model.graph.nodes
    ):  # not a mask alone
        raise DataError(
            f"the calibration data is constant: input {constant[0].target} is "
            f"{inputs[constant[0]].low:g} everywhere",
            expected="samples like those the model will see",
        )
    if alike and samples > 1:
        raise DataError(
            f"the calibration data is constant: all {samples} samples are the same",
            expected="samples like those the model will see",
        )
    if samples < FEW and notes is not None:
        what = "a single sample" if samples == 1 else f"{samples} samples"
        told = f"calibrated on {what}: ranges may be far too narrow, give a hundred or more"
        notes.extend([told] if told not in notes else [])
    return watched


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def _count(node: fx.Node, histogram: Histogram, masks: bool, value: Tensor) -> None:
    """Take in the value of a node; with `masks`, −inf in it means: not this one."""
    try:
        histogram.add(value[value != -math.inf] if masks else value)
    except FloatingPointError:
        raise _not_finite(node) from None


def _not_finite(node: fx.Node) -> Exception:
    if node.op == "placeholder":
        return DataError(
            f"the calibration data holds NaN or infinity, in input {node.target}", expected="finite values"
        )
    return UnsupportedError(
        f"the result of {place(node)} is NaN or infinite on the calibration data",
        remedy="check the weights (nncompress inspect) and how the data is normalised",
    )


# -- choosing the range ----------------------------------------------------------------------------------


def choose_range(histogram: Histogram, method: str, percentile: float = 99.99) -> tuple[float, float]:
    """(low, high) to cover, with low <= 0 <= high.

    Args:
        method: a row of the table above.
        percentile: for that method, the share in percent that each end keeps.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "min-max" or histogram.width == 0 or low == high:
        return low, high
    if method == "percentile":
        return _percentile(histogram, percentile / 100)
    used = np.nonzero(histogram.counts)[0]
    counts = histogram.counts[used].astype(np.float64)
    centers = np.clip(histogram.centers[used], low, high)
    if method == "mse":
        return _least_error(centers, counts, low, high)
    return _least_divergence(histogram, low, high)


@dataclass(frozen=True)
class RangeRule:
    """How the qparams of an activation follow from what was seen of it.

    Attributes:
        method, percentile: as `choose_range` takes them.
        symmetric: zero is in the middle.
    """

    method: str
    percentile: float = 99.99
    symmetric: bool = False

    def qparams(self, histogram: Histogram) -> QParams:
        covering = QParams.symmetric if self.symmetric else QParams.covering
        return covering(*choose_range(histogram, self.method, self.percentile))


def _percentile(histogram: Histogram, share: float) -> tuple[float, float]:
    cumulative = np.cumsum(histogram.counts)
    total = cumulative[-1]
    upper = (np.searchsorted(cumulative, share * total) + 1 - BINS) * histogram.width
    lower = (np.searchsorted(cumulative, (1 - share) * total, side="right") - BINS) * histogram.width
    return max(min(lower, 0.0), min(histogram.low, 0.0)), min(max(upper, 0.0), max(histogram.high, 0.0))


def _least_error(centers: np.ndarray, counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Coordinate descent over both ends, from the full range."""
    shares = np.concatenate([np.linspace(0.02, 0.5, 25), np.linspace(0.51, 1.0, 50)])

    def error(bounds: tuple[float, float]) -> float:
        step = (bounds[1] - bounds[0]) / 255
        if step <= 0:
            return float(counts @ centers**2)
        zero = round(-bounds[0] / step)
        rounded = (np.clip(np.rint(centers / step) + zero, 0, 255) - zero) * step
        return float(counts @ (rounded - centers) ** 2)

    best = (low, high)
    for _ in range(2):
        if high > 0:
            best = min(((best[0], high * s) for s in shares), key=error)
        if low < 0:
            best = min(((low * s, best[1]) for s in shares), key=error)
    return best


def _least_divergence(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    def divergence(share: float) -> float:
        first = int(np.floor(low * share / histogram.width)) + BINS
        last = min(int(np.ceil(high * share / histogram.width)) + BINS, 2 * BINS)
        inside = histogram.counts[first:last].astype(np.float64)
        if inside.size < 1024:
            return math.inf
        reference = inside.copy()
        reference[0] += histogram.counts[:first].sum()
        reference[-1] += histogram.counts[last:].sum()
        level = np.arange(inside.size) * 256 // inside.size
        mass = np.bincount(level, inside, 256)
        filled = np.bincount(level, inside > 0, 256)
        spread = np.where(inside > 0, mass[level] / np.maximum(filled[level], 1), 0.0)
        p, q = reference / reference.sum(), spread / max(spread.sum(), 1.0)
        where = p > 0
        return float(np.sum(p[where] * np.log(p[where] / np.maximum(q[where], 1e-12))))

    share = min(np.linspace(0.05, 1.0, 96), key=divergence)
    return low * share, high * share
