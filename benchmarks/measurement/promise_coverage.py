"""How often the bound of `optimize` holds: losses whose truth is known, drawn many times.

    python -m benchmarks.measurement.promise_coverage metrics|shares|detections [DRAWS]

Of each case DRAWS (1,000) data sets of 100 to 1,000 samples are drawn; printed is the share of them whose
upper bound with 95 % confidence is not below the truth.

`metrics`: made-up answers, whose true loss is that of 500,000 samples; beside it the plain paired interval
(Student's t of the pseudo-values, uncorrected).
`shares`: losses within samples, and those of an accuracy that is a class of the user's; beside it how far the
bound lies above the truth on average, in points.
`detections`: mAP of made-up boxes, whose true loss is that of 20,000 images.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nncompress.analysis.intervals import student_t
from nncompress.analysis.metrics.base import Metric
from nncompress.analysis.metrics.classification import F1, Top1
from nncompress.analysis.metrics.continuous import Mae, Rmse
from nncompress.analysis.metrics.detection import DetectionScores, MeanAveragePrecision
from nncompress.analysis.metrics.resampled import ResampledScores
from nncompress.analysis.metrics.summed import SummedScores
from nncompress.data import Batch
from nncompress.search.loss import Loss, lost, means, pseudo_values

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]  # labels, the original's answers, the changed one's


def classes(generator: np.random.Generator, count: int, wrong: float, other: float) -> Drawn:
    """Five classes, one with 3 % of the samples; `other`: the share that is answered anew at random."""
    label = generator.choice(5, size=count, p=[0.5, 0.25, 0.15, 0.07, 0.03])
    first = np.where(generator.random(count) < wrong, generator.integers(0, 5, count), label)
    return label, first, np.where(generator.random(count) < other, generator.integers(0, 5, count), first)


def numbers(generator: np.random.Generator, count: int, more: float) -> Drawn:
    """Errors of Student's t with five degrees of freedom, and a normal one more."""
    target, off = generator.standard_normal(count), generator.standard_t(5, size=count)
    return target, target + off, target + off + more * generator.standard_normal(count)


def skewed(generator: np.random.Generator, count: int, sigma: float) -> Drawn:
    """Few samples carry the loss: log-normal errors where there were none."""
    zeros = np.zeros(count)
    return zeros, zeros, generator.lognormal(-3, sigma, count)


CASES: dict[str, tuple[type[Metric], Callable[[np.random.Generator, int], Drawn]]] = {
    "F1, 2 % answered anew": (F1, lambda g, n: classes(g, n, 0.05, 0.02)),
    "F1, 0.5 % answered anew": (F1, lambda g, n: classes(g, n, 0.1, 0.005)),
    "RMSE": (Rmse, lambda g, n: numbers(g, n, 0.2)),
    "MAE, log-normal, sigma 1.2": (Mae, lambda g, n: skewed(g, n, 1.2)),
    "MAE, log-normal, sigma 1.5": (Mae, lambda g, n: skewed(g, n, 1.5)),
}


def scores(metric: type[Metric], answers: np.ndarray, labels: np.ndarray) -> SummedScores:
    found = metric().begin()
    output = torch.from_numpy(answers)
    found.add(output, Batch((output,), torch.from_numpy(labels)), "made up")
    assert isinstance(found, SummedScores)
    return found


SHARES = {  # what share of the samples loses how much
    "5 % lose 0.001, 1 % all": ((0.05, 0.001), (0.01, 1.0)),
    "50 % lose 0.001, 1 % all": ((0.5, 0.001), (0.01, 1.0)),
    "50 % lose 0.01, 1 % half": ((0.5, 0.01), (0.01, 0.5)),
    "50 % lose 0.05, 2 % all": ((0.5, 0.05), (0.02, 1.0)),
    "20 % lose 0.05, 3 % 0.3": ((0.2, 0.05), (0.03, 0.3)),
}
RIGHT = {  # of those right, how many are lost, and of those wrong how many are won
    "own accuracy, 1 % lost": (0.01, 0.0),
    "own accuracy, 3 % lost": (0.03, 0.0),
    "own accuracy, 5 % lost, 2 % won": (0.05, 0.02),
    "own accuracy, 10 % lost": (0.1, 0.0),
}


class _Right:
    """An accuracy of the user's: a class, of which nobody knows that it is a mean."""

    def __init__(self) -> None:
        self.right, self.count = 0.0, 0

    def update(self, output: torch.Tensor, batch: Batch) -> None:
        self.right, self.count = self.right + float(output.sum()), self.count + len(output)

    def compute(self) -> float:
        return self.right / max(self.count, 1)


def within_samples(
    generator: np.random.Generator, samples: int, kinds: tuple[tuple[float, float], ...]
) -> Loss:
    """Of shares within samples, as `agreement` on tokens and pixels."""
    chance, parts, below = generator.random(samples), np.zeros(samples), 0.0
    for share, loss in kinds:
        parts[(below <= chance) & (chance < below + share)] = loss
        below += share
    return means(float(parts.mean()), parts, float(np.abs(parts).max()), samples, whole=1.0)


def own_accuracy(generator: np.random.Generator, samples: int, kinds: tuple[float, float]) -> Loss:
    """Of a class of the user's."""
    chance = generator.random(samples)
    before, after = chance >= kinds[1], chance < 1 - kinds[0]
    found = []
    for answers in (before, after):
        scores = ResampledScores(Top1(), _Right, lambda each: each.compute())
        output = torch.from_numpy(answers).double()
        scores.add(output, Batch((output,), None), "made up")
        found.append(scores)
    return lost(*found)


def metrics(draws: int) -> None:
    generator = np.random.default_rng(0)
    for name, (metric, drawn) in CASES.items():
        label, first, second = drawn(generator, 500_000)
        truth = lost(scores(metric, first, label), scores(metric, second, label)).value
        for count in (100, 300, 1000):
            held = plain = 0
            for _ in range(draws):
                label, first, second = drawn(generator, count)
                pair = scores(metric, first, label), scores(metric, second, label)
                held += lost(*pair).at_most() >= truth
                value, parts, _ = pseudo_values(*pair)
                sign = 1 if metric.higher_is_better else -1
                half = student_t(count - 1, 0.9) * float(parts.std(ddof=1)) / math.sqrt(count)
                plain += sign * value + half >= truth
            print(f"{name:28} {count:5} samples: {held / draws:.3f}, plain {plain / draws:.3f}", flush=True)


def shares(draws: int) -> None:
    generator = np.random.default_rng(0)
    table: list[tuple[str, Callable[..., Loss], Any, float]] = [
        *(
            (name, within_samples, kinds, sum(p * loss for p, loss in kinds))
            for name, kinds in SHARES.items()
        ),
        *((name, own_accuracy, kinds, kinds[0] - kinds[1]) for name, kinds in RIGHT.items()),
    ]
    for name, draw, kinds, truth in table:
        for samples in (100, 200, 500, 1000):
            bounds = np.array([draw(generator, samples, kinds).at_most() for _ in range(draws)])
            held, above = (bounds >= truth).mean(), (bounds[np.isfinite(bounds)] - truth).mean()
            print(f"{name:34} {samples:5} samples: {held:.3f}, {100 * above:.2f} points above", flush=True)


DETECTIONS = {  # share of the boxes that are lost, and how many pixels the others move more
    "mAP, 2 % of the boxes lost": (0.02, 0.0),
    "mAP, 10 % of the boxes lost": (0.1, 0.0),
    "mAP, boxes less exact": (0.0, 1.0),
    "mAP, 5 % lost, less exact": (0.05, 0.5),
}
MANY_IMAGES = 20_000


def detected(
    generator: np.random.Generator, images: int, lost_boxes: float, moved: float
) -> tuple[DetectionScores, DetectionScores]:
    """Images with one to four boxes of two classes: right ones with errors of some pixels, and false ones."""
    metric = MeanAveragePrecision()
    before, after = DetectionScores(metric), DetectionScores(metric)
    for _ in range(images):
        count = int(generator.integers(1, 5))
        corner, size = generator.uniform(0, 60, (count, 2)), generator.uniform(20, 40, (count, 2))
        kind = generator.integers(0, 2, (count, 1)).astype(float)
        there = np.concatenate([corner, corner + size], axis=1)
        label = np.concatenate([kind, there, np.zeros((count, 1))], axis=1)
        found = there + 2 * generator.standard_normal((count, 4))
        false = np.concatenate([corner[:1] + 50, corner[:1] + 50 + size[:1]], axis=1)
        score = generator.uniform(0.3, 1.0, (count, 1)), generator.uniform(0.0, 0.8, (1, 1))
        kept = generator.random(count) >= lost_boxes
        for scores, boxes, some in (
            (before, found, np.ones(count, bool)),
            (after, found + moved * generator.standard_normal((count, 4)), kept),
        ):
            rows = np.concatenate(
                [
                    np.concatenate([boxes, score[0], kind], axis=1)[some],
                    np.concatenate([false, score[1], kind[:1]], axis=1),
                ]
            )
            batch = Batch((torch.zeros(1, 1),), torch.from_numpy(label)[None])
            scores.add(torch.from_numpy(rows)[None], batch, "made up")
    return before, after


def detections(draws: int) -> None:
    generator = np.random.default_rng(0)
    for name, kinds in DETECTIONS.items():
        before, after = detected(generator, MANY_IMAGES, *kinds)
        truth = before.value - after.value
        for count in (50, 200):
            bounds = np.array([lost(*detected(generator, count, *kinds)).at_most() for _ in range(draws)])
            held, above = (bounds >= truth).mean(), (bounds[np.isfinite(bounds)] - truth).mean()
            print(f"{name:30} {count:5} images: {held:.3f}, {100 * above:.2f} points above", flush=True)


if __name__ == "__main__":
    {"metrics": metrics, "shares": shares, "detections": detections}[sys.argv[1]](
        int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    )
