"""How often the bound of `optimize` holds for shares: losses whose truth is known, drawn many times.

    python -m benchmarks.measurement.promise_coverage_shares [DRAWS]

Prints for each kind of loss and number of samples the share of draws in which the one-sided 95 % bound is not
below the truth, and by how much it lies above it on average, in points.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nncompress.analysis.metrics.classification import Top1
from nncompress.analysis.metrics.resampled import ResampledScores
from nncompress.data import Batch
from nncompress.search.loss import Loss, lost, means

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


def shares(generator: np.random.Generator, samples: int, kinds: tuple[tuple[float, float], ...]) -> Loss:
    """Of shares within samples, as `agreement` on tokens and pixels."""
    chance, parts, below = generator.random(samples), np.zeros(samples), 0.0
    for share, loss in kinds:
        parts[(below <= chance) & (chance < below + share)] = loss
        below += share
    return means(float(parts.mean()), parts, float(np.abs(parts).max()), samples, whole=1.0)


def right(generator: np.random.Generator, samples: int, kinds: tuple[float, float]) -> Loss:
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


def covered(draw: Callable[[], Loss], truth: float, draws: int) -> tuple[float, float]:
    """How often the bound holds, and how far it is above the truth where it is finite."""
    bounds = np.array([draw().at_most() for _ in range(draws)])
    return float((bounds >= truth).mean()), float((bounds[np.isfinite(bounds)] - truth).mean())


def main(draws: int) -> None:
    generator = np.random.default_rng(0)
    table: list[tuple[str, Callable[..., Loss], Any, float]] = [
        *((name, shares, kinds, sum(p * loss for p, loss in kinds)) for name, kinds in SHARES.items()),
        *((name, right, kinds, kinds[0] - kinds[1]) for name, kinds in RIGHT.items()),
    ]
    for name, draw, kinds, truth in table:
        for samples in (100, 200, 500, 1000):
            held, above = covered(lambda: draw(generator, samples, kinds), truth, draws)  # noqa: B023
            print(
                f"{name:34} {samples:5} samples: held in {held:.3f}, {100 * above:.2f} points above",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
