"""y = x1 + x2: how few hidden nodes are enough? (Çallı 2017, §2.1.3 and §3.1.1; the draft, §2.2.2)

One ReLU gives the sum exactly if it is active on all inputs: relu(w·x + b) with b beyond the most negative
w·x, and the output's bias taking b back. That is what the draft's weights show (b = 7.8, inputs in (−1, 1)).
They "did not look like the solution" with zero biases because that one fits positive sums only.

Two things keep the papers' recipe from getting there:
- the root of the mean square has a gradient of constant size, so a constant rate hovers about the minimum, at
  roughly the size of a step, instead of converging; ours falls to zero in every cycle;
- a threshold of 0 removes dead nodes only, and two nodes that share the feature are never dead. Ours removes
  three quarters of the nodes by variance as long as the loss comes back, and half as many where it does not.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from nncompress.cycles import CycleSettings, run_cycles
from nncompress.data import Dataset, open_data
from nncompress.ir import Model
from nncompress.studies.study import Request, Row, Study, StudyResult, Trial
from nncompress.train import TrainSettings, train
from nncompress.train.loss.validation import first_task, validate
from nncompress.zoo.small_nets import summation

SAMPLES = 1_000_000
GOOD = 0.01  # RMSE that counts as almost zero: 1.2 % of the sum's standard deviation
TRAINING: dict[str, Any] = {"batch": 1000, "lr": 0.01, "momentum": 0.9, "task": "regression", "loss": "rmse"}
OURS = CycleSettings(criterion="activation-variance", ratio=0.75, max_loss=0.1, samples=50_000)


RANDOM = replace(OURS, criterion="random")
PENALTIES: dict[str, dict[str, Any]] = {"": {}, ", L1 0.01": {"l1": 0.01}, ", L2 0.01": {"l2": 0.01}}


@dataclass(frozen=True)
class Plan:
    """One row: its name, what the paper says of it, how it prunes and trains, over how many seeds."""

    name: str
    paper: str
    cycling: CycleSettings
    training: TrainSettings
    runs: int


def run(request: Request) -> StudyResult:
    """Ours over all runs, the random baseline over a third of them, the papers' recipes over two."""
    started = time.monotonic()
    hidden = 50 if request.quick else 1000
    data, fresh = _data(request)
    rows: list[Row] = []
    for plan in _plans(request):
        found = []
        for seed in range(request.seed, request.seed + plan.runs):
            trial = _trial(
                request, f"{len(rows)}-{seed}", plan.cycling, plan.training, hidden, seed, data, fresh
            )
            request.say(f"{plan.name}, seed {seed}: {trial.nodes[0]} nodes, loss {trial.loss:.2g}")
            found.append(trial)
        rows.append(Row(plan.name, plan.paper, tuple(found)))
    ours = rows[0].trials
    reached = sum(trial.nodes == (1,) and trial.loss < GOOD for trial in ours)
    verdict = f"exactly 1 hidden node with a loss below {GOOD} in {reached} of {len(ours)} seeds"
    return StudyResult("summation", tuple(rows), verdict, round(time.monotonic() - started, 1))


def _plans(request: Request) -> list[Plan]:
    """Ours, random removal in the same cycles, and the papers' recipe: threshold 0, constant rate."""
    runs = request.runs or (1 if request.quick else 10)
    steps, cycles = (200, 1) if request.quick else (300, 9)
    ours = TrainSettings(epochs=1, limit=steps * 1000, schedule="cosine", **TRAINING)
    plans = [
        Plan("ours", "", OURS, ours, runs),
        Plan("random at equal nodes", "hard to beat", RANDOM, ours, math.ceil(runs / 3)),
    ]
    for criterion in ("activation-count", "activation-variance"):
        for distorted in (True, False):
            cycling = CycleSettings(criterion=criterion, distort=distorted, max_cycles=cycles, samples=20_000)
            for penalty, values in PENALTIES.items():
                if penalty and request.quick:
                    continue
                name = f"{criterion} 0{', distorted' if distorted else ''}{penalty}"
                said = "1 node, loss almost 0" if distorted else "about 50 nodes"
                recipe = replace(ours, limit=steps // 3 * 1000, schedule="constant", **values)
                said = "as without a penalty" if penalty else said
                plans.append(Plan(name, said, cycling, recipe, min(2, runs)))
    return plans


def _data(request: Request) -> tuple[Dataset, Dataset]:
    """Training samples in (−1, 1)², and others that no training sees."""
    generator = np.random.default_rng(request.seed)
    inputs = _model(2, 0).inputs
    opened = []
    for name, count in (("train", SAMPLES), ("fresh", SAMPLES // 10)):
        x = generator.uniform(-1, 1, (count, 2)).astype(np.float32)
        with request.writing(f"{name}.npz") as path:
            np.savez(path, x=x, y=x.sum(1))
        opened.append(open_data(str(request.folder / path.name), inputs))
    return opened[0], opened[1]


def _model(hidden: int, seed: int) -> Model:
    torch.manual_seed(seed)
    return Model.from_module(summation(hidden).eval(), (torch.randn(2, 2),))


def _trial(
    request: Request,
    name: str,
    cycling: CycleSettings,
    training: TrainSettings,
    hidden: int,
    seed: int,
    data: Dataset,
    fresh: Dataset,
) -> Trial:
    """Cycles from a fresh network, then a longer training of what is left; the loss is of fresh samples."""
    values = {**vars(training), "seed": 1000 * seed}
    pruned, result = run_cycles(
        _model(hidden, seed),
        data,
        TrainSettings(**values),
        cycling,
        folder=request.folder / name,
        resume=True,
        progress=request.progress,
    )
    if cycling.max_loss is not None:
        pruned, _ = train(pruned, data, TrainSettings(**{**values, "epochs": 4}), progress=request.progress)
    task = first_task(pruned, fresh, training)
    loss = validate(pruned.outputs_of, fresh, task, 1000, torch.device("cpu"), request.progress)["loss"]
    trace = tuple((c.cycle, sum(c.nodes.values()), c.loss) for c in result.cycles)
    return Trial(seed, tuple(result.nodes.values()), loss, result.prunings, trace)


SUMMATION = Study("summation", "y = x1 + x2 with 1000 hidden nodes: down to one", False, run)
