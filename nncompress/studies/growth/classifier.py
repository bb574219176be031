"""A classifier at full width from the start, against one that starts at a quarter and is doubled twice.

Both end with the same nodes in every layer. The growing one is trained for as many epochs, and once more for
about as many seconds: what its cheap first phases save goes into epochs at full width ("the algorithm takes
more epochs to converge", the thesis, §5.5). Besides the accuracy, two times are measured in turns, step by
step: what a step costs in the first phase, and what growth costs once nothing is left to grow.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from nncompress.analysis.accuracy import evaluate
from nncompress.analysis.cost import cost
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.studies.growth.trainings import (
    GrowthResult,
    GrowthRow,
    GrowthTrial,
    Ratio,
    difference,
    step_time,
    trial,
)
from nncompress.studies.images import PER_IMAGE, Crops, open_images
from nncompress.studies.study import Request, Study
from nncompress.train import GrowSettings, TrainSettings, train

QUARTER, FULL = 0.25, 1.0
DECIDES = 0.1  # of the training images: where the plateau is seen
HOW: dict[str, Any] = {
    "grow": "plateau",
    "grow_where": "uniform",
    "grow_factor": 2.0,
    "grow_init": "split",  # what is fresh has little left to learn from a loss that is small by then
}


@dataclass(frozen=True)
class Plan:
    """One study.

    Attributes:
        network: (width as a share of the full one, classes, channels) → a fresh network.
        size: pixels of its square input.
        static, dynamic, first, overhead: the paper's figures, in its words.
        quick_images: of training, in a quick run.
    """

    name: str
    network: Callable[[float, int, int], nn.Module]
    size: int
    training: dict[str, Any]
    epochs: int
    quick_images: int
    static: str = ""
    dynamic: str = ""
    first: str = ""
    overhead: str = ""
    seeds: int = 3


def run(plan: Plan, request: Request) -> GrowthResult:
    """Static and dynamic over the seeds, and both times.

    Raises:
        UsageError, DataError: no data, or not labelled images of one size.
    """
    started = time.monotonic()
    quick = request.quick
    limits = (plan.quick_images, plan.quick_images // 2) if quick else (None, None)
    images, test = open_images(request.data, plan.name, limits)
    decides = round(DECIDES * len(images))
    order = np.random.default_rng(0).permutation(len(images))
    seen, held = (
        images.some(part, name) for part, name in ((order[decides:], "seen"), (order[:decides], "held"))
    )
    epochs = request.epochs or (4 if quick else plan.epochs)
    settings = TrainSettings(epochs=epochs, task="classification", **plan.training)

    def fresh(width: float, seed: int) -> Model:
        torch.manual_seed(seed)
        network = plan.network(width, max(images.classes, test.classes), images.channels)
        model = Model.from_module(network.eval(), (torch.randn(2, images.channels, plan.size, plan.size),))
        model.metadata["normalize"] = PER_IMAGE
        return model

    full = fresh(FULL, 0)
    data, validation, tested = (Crops(part, full.inputs) for part in (seen, held, test))
    most = cost(full).macs
    growth = GrowSettings(max_macs=most, grow_patience=1, grow_delta=_delta(quick), **HOW)
    runs = request.runs or (1 if quick else plan.seeds)

    def trained(name: str, seed: int, epochs: int) -> GrowthTrial:
        width, how = (FULL, None) if name == "static" else (QUARTER, growth)
        chosen = replace(settings, seed=seed, epochs=epochs)
        model, measure = fresh(width, seed), _top1_on(tested)
        one = trial(request, name, model, data, validation, chosen, how, _accuracy, measure)
        said = f"top-1 {one.measure:.2f} %, {one.seconds:.0f} s, {one.parameters:,} parameters"
        request.say(f"{name}, seed {seed}, {epochs} epochs: {said}")
        return one

    static, dynamic, longer = [], [], []
    for seed in range(request.seed, request.seed + runs):
        static.append(trained("static", seed, epochs))
        dynamic.append(trained("dynamic", seed, epochs))
        spared = round(epochs * max(0.0, 1 - dynamic[-1].seconds / static[-1].seconds))
        longer.append(trained("dynamic", seed, epochs + spared) if spared else dynamic[-1])
    rows = (
        GrowthRow("static, full width", plan.static, tuple(static)),
        GrowthRow("dynamic, a quarter doubled twice", plan.dynamic, tuple(dynamic)),
        GrowthRow("the same, as many seconds", "", tuple(longer)),
    )
    rounds, sessions = (4, 2) if quick else (15, 5)
    timed = {"rounds": rounds, "sessions": sessions}
    limit = 4 * plan.training["batch"]
    small = fresh(QUARTER, 0)
    grown = _grown(small, growth, data, replace(settings, epochs=4, limit=limit))
    saved = step_time((small, None), (full, None), data, settings, **timed)
    added = step_time((full, None), (grown, growth), data, settings, **timed)
    ratios = (
        Ratio("a step of the full width over one of the first phase", plan.first, saved),
        Ratio("a step grown to full width over a plain one", plan.overhead, added),
    )
    last = statistics.fmean(one.curve[-1].step for one in longer) / static[0].curve[-1].step * epochs
    budget = (
        f"{epochs} epochs (last row {last:.3g}) of {len(seen):,} images ({images.spec}); "
        f"top-1 on {len(test):,} others"
    )
    seconds = round(time.monotonic() - started, 1)
    return GrowthResult(plan.name, "top-1 %", rows, ratios, budget, _verdict(rows, ratios), seconds)


def study(plan: Plan, summary: str) -> Study:
    return Study(plan.name, summary, True, partial(run, plan), ("plot", "runs", "epochs", "keep"))


def _delta(quick: bool) -> float:
    """What counts as a fall of the loss; a quick run grows after every epoch."""
    return 0.9 if quick else 0.3


def _grown(model: Model, growth: GrowSettings, data: Dataset, settings: TrainSettings) -> Model:
    """The model after growing twice, as a dynamic run grows it."""
    grown, _ = train(model, data, settings, growth=replace(growth, grow_delta=0.9))
    return grown


def _accuracy(row: dict[str, float]) -> float:
    return 100 * row["top1"]


def _top1_on(data: Dataset) -> Callable[[Model], float]:
    def measure(model: Model) -> float:
        share = evaluate(model.outputs_of, data, "classification").top1
        assert share is not None
        return 100 * share

    return measure


def _verdict(rows: tuple[GrowthRow, GrowthRow, GrowthRow], ratios: tuple[Ratio, Ratio]) -> str:
    static, *dynamic = rows
    texts = []
    for row, budget in zip(dynamic, ("as many epochs", "about as many seconds")):
        mean, error = difference(static.measures, row.measures)
        spread = "" if math.isnan(error) else f" ± {error:.2f}"
        share = f"{row.seconds / static.seconds:.2f} of the time"
        texts.append(f"{mean:+.2f}{spread} points in {budget} ({share})")
    trials = [trial for row in dynamic for trial in row.trials]
    short = sum(trial.parameters < static.trials[0].parameters for trial in trials)
    if short:
        texts.append(f"but {short} of {len(trials)} did not reach the full width in time")
    first, overhead = (ratio.value for ratio in ratios)
    return (
        f"dynamic less static: {', '.join(texts)}; the first phase is {first.value:.1f}x faster, "
        f"growth costs {100 * (overhead.value - 1):+.1f} % ({100 * (overhead.low - 1):+.1f} to "
        f"{100 * (overhead.high - 1):+.1f}) at full width"
    )
