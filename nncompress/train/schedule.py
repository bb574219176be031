"""The learning rate as a function of the step alone, so that a resumed run needs no memory of it."""

from __future__ import annotations

import math

from nncompress.train.settings import TrainSettings

RISE = 0.3  # share of a one-cycle run in which the rate rises (Smith & Topin 2019)
START = 1 / 25  # where it begins


def learning_rate(settings: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """The rate of step `step` (from 0) of `settings.epochs * steps_per_epoch`."""
    total = settings.epochs * steps_per_epoch
    warm = settings.warmup * steps_per_epoch
    rate = settings.lr * (min(1.0, (step + 1) / warm) if warm else 1.0)
    done = step / total
    if settings.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in settings.milestone_epochs())
        return rate * settings.gamma**passed
    if settings.schedule == "cosine":
        done = max(0.0, (step - warm) / max(1.0, total - warm))
        return rate * _half_cosine(done)
    if settings.schedule == "one-cycle":
        if done < RISE:
            return rate * (START + (1 - START) * (1 - _half_cosine(done / RISE)))
        return rate * _half_cosine((done - RISE) / (1 - RISE))
    return rate


def _half_cosine(done: float) -> float:
    """From 1 to 0 as `done` goes from 0 to 1."""
    return (1 + math.cos(math.pi * min(1.0, done))) / 2
