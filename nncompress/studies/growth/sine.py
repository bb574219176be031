"""sin x on [−2π, 2π] by one hidden layer: 100 nodes, 500 nodes, or 125 that grow to 500 in quarters.

The thesis on dynamic network capacity, §5.2: Adam, Xavier; its figures were in a talk and not in the text.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nncompress.data import Dataset, open_data
from nncompress.ir import Model
from nncompress.studies.growth.trainings import GrowthResult, GrowthRow, difference, trial
from nncompress.studies.study import Request, Study
from nncompress.train import GrowSettings, TrainSettings
from nncompress.zoo.small_nets import sine

MOST, SMALL = 500, 100
SAMPLES, EPOCHS, SEEDS = 2048, 150, 5
QUICK = {"epochs": 30, "seeds": 1, "patience": 2}
TRAINING: dict[str, Any] = {
    "batch": 128,
    "optimizer": "adam",
    "lr": 0.01,
    "schedule": "cosine",
    "task": "regression",
}
# In the first epochs the loss rests again and again; a plateau is five epochs that gain less than 5 %.
GROWTH = GrowSettings(
    grow="plateau",
    grow_quarter_of=MOST,
    grow_where="uniform",
    grow_init="xavier",
    grow_patience=5,
    grow_delta=0.05,
)


def run(request: Request) -> GrowthResult:
    """All three over the seeds; the measure is the RMSE on 1001 points that training does not see."""
    started = time.monotonic()
    seeds = request.runs or (QUICK["seeds"] if request.quick else SEEDS)
    epochs = request.epochs or (QUICK["epochs"] if request.quick else EPOCHS)
    settings = TrainSettings(epochs=epochs, **TRAINING)
    growth = replace(GROWTH, grow_patience=QUICK["patience"]) if request.quick else GROWTH
    data, points = _data(request)
    plans = [
        (f"static {SMALL}", SMALL, None),
        (f"static {MOST}", MOST, None),
        (f"dynamic to {MOST} in quarters", MOST // 4, growth),
    ]
    rows: list[GrowthRow] = []
    for name, hidden, how in plans:
        trials = []
        for seed in range(request.seed, request.seed + seeds):
            chosen = TrainSettings(**{**vars(settings), "seed": seed})
            file = name.replace(" ", "-")
            one = trial(request, file, _model(hidden, seed), data, points, chosen, how, _rmse)
            said = f"{one.parameters:,} parameters, RMSE {one.measure:.4f}, {one.seconds:.0f} s"
            request.say(f"{name}, seed {seed}: {said}")
            trials.append(one)
        rows.append(GrowthRow(name, "", tuple(trials)))
    budget = f"{epochs} epochs of {SAMPLES:,} points in batches of {TRAINING['batch']}, Adam"
    seconds = round(time.monotonic() - started, 1)
    return GrowthResult("sine", "RMSE", tuple(rows), (), budget, _verdict(rows), seconds)


def _verdict(rows: list[GrowthRow]) -> str:
    small, large, dynamic = rows
    mean, error = difference(large.measures, dynamic.measures)
    spread = "" if math.isnan(error) else f" ± {error:.2g}"
    certain = math.isnan(error) or abs(mean) > 2 * error
    order = "as exact as" if not certain else "more exact than" if mean < 0 else "less exact than"
    return (
        f"the network that grows is {order} {MOST} nodes from the start "
        f"(RMSE {dynamic.mean:.2g} against {large.mean:.2g}, difference {mean:+.2g}{spread}), "
        f"and {small.mean / dynamic.mean:.1f} times as exact as {SMALL}"
    )


def _rmse(row: dict[str, float]) -> float:
    return math.sqrt(row["loss"])


def _data(request: Request) -> tuple[Dataset, Dataset]:
    """Uniform points to train on, and an even grid to measure on."""
    drawn = np.random.default_rng(request.seed).uniform(-2 * math.pi, 2 * math.pi, SAMPLES)
    grid = np.linspace(-2 * math.pi, 2 * math.pi, 1001)
    inputs = _model(4, 0).inputs
    opened = []
    for name, x in (("train", drawn), ("grid", grid)):
        values = x.astype(np.float32)[:, None]
        with request.writing(f"{name}.npz") as path:
            np.savez(path, x=values, y=np.sin(values))
        opened.append(open_data(str(request.folder / path.name), inputs))
    return opened[0], opened[1]


def _model(hidden: int, seed: int) -> Model:
    torch.manual_seed(seed)
    return Model.from_module(sine(hidden).eval(), (torch.randn(2, 1),))


SINE = Study(
    "sine",
    "sin x by one hidden layer that grows from 125 to 500 nodes",
    False,
    run,
    ("plot", "runs", "epochs", "keep"),
)
