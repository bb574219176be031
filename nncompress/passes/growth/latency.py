"""The largest growth that stays within a measured latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from nncompress.analysis.growth import Amount, Growth, Wish
from nncompress.bench.measure import Measurement, undisturbed
from nncompress.ir import Model

ROUNDS = 30  # per measurement
DOUBLINGS, HALVINGS = 5, 4


def within_latency(
    model: Model, wish: Wish, step: Callable[[Wish], Growth], most: float
) -> tuple[Growth, float]:
    """Double the factor of growth until it is too slow, then halve the interval.

    Args:
        step: carries a wish out.
        most: multiple of the model's own latency.

    Returns:
        The largest growth found that keeps within `most`, and its measured multiple.
    """
    none = Growth(model, {}, {}, {}, {}, {}, frozenset(), {}, 0.0)
    best, ratio, low, high = none, 1.0, 1.0, 2.0
    for _ in range(DOUBLINGS):
        grown, measured = _tried(model, wish, step, high)
        if measured > most:
            break
        best, ratio, low, high = grown, measured, high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        grown, measured = _tried(model, wish, step, middle)
        if measured > most:
            high = middle
        else:
            best, ratio, low = grown, measured, middle
    return (best if best.added else grown), ratio if best.added else 1.0


def _tried(model: Model, wish: Wish, step: Callable[[Wish], Growth], factor: float) -> tuple[Growth, float]:
    grown = step(replace(wish, amount=Amount(factor=factor, round_to=wish.amount.round_to)))
    return grown, latency_ratio(model, grown.model)


def latency_ratio(model: Model, other: Model) -> float:
    """How many times as long a call of `other` takes, at batch 1 in torch: median of interleaved rounds."""
    inputs = model.example_inputs(1)

    def call(each: Model) -> Callable[[], object]:
        return lambda: each.outputs_of(*inputs)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), undisturbed():
            measured = Measurement([call(model), call(other)], by_cpu=True)
            measured.warm_up()
            for _ in range(ROUNDS):
                measured.round()
    finally:
        torch.set_num_threads(threads)
    return median(b / a for a, b in zip(*(times.cpu_ns for times in measured.times)))
