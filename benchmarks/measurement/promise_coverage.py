"""How often the bound of `optimize` holds: metrics of made-up answers whose true loss is known.

    python -m benchmarks.measurement.promise_coverage [DRAWS]

Of each case DRAWS (1,000) data sets of 100, 300 and 1,000 samples are drawn; printed is the share of them
whose upper bound with 95 % confidence is not below the loss on 500,000 samples, and that of the plain paired
interval (Student's t of the pseudo-values, uncorrected).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import torch

from nncompress.analysis.intervals import student_t
from nncompress.analysis.metrics.base import Metric
from nncompress.analysis.metrics.classification import F1
from nncompress.analysis.metrics.continuous import Mae, Rmse
from nncompress.analysis.metrics.summed import SummedScores
from nncompress.data import Batch
from nncompress.search.loss import lost, pseudo_values

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


def main(draws: int) -> None:
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


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
