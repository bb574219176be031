"""How few channels does an autoencoder of digits need? (Çallı 2017, §2.1.3 and §3.1.2)

1-32-64-32-1 nodes, pruned in cycles. 1-4-16-4-1 is the reference that could copy its input without loss (as
many values as pixels in every layer); the papers reached 1-2-4-3-1 with activation variance, outlier bounds
and L2. That code has 196 values for 784 pixels, so its loss cannot be the reference's: what the best linear
code of as many values loses (PCA of the training digits) stands beside it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from nncompress import pipeline
from nncompress.cycles import CycleSettings, run_cycles
from nncompress.data import Dataset, open_data
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes import Context, PruneNodes
from nncompress.studies.study import Request, Row, Study, StudyResult, Trial
from nncompress.train import TrainSettings, train
from nncompress.zoo.small_nets import Autoencoder

PAPER = (2, 4, 3)
LOSSLESS = (4, 16, 4)
NORMS = ("bn1", "bn2", "bn3")  # each of them belongs to the nodes of one layer alone
CODE_PLACES = 7 * 7  # where the code's channels have a value each
HELD_OUT = 0.2
VARIANCE = "activation-variance"
TRAINING: dict[str, Any] = {"batch": 100, "optimizer": "adam", "task": "reconstruction", "loss": "rmse"}


@dataclass(frozen=True)
class Plan:
    """One row.

    Attributes:
        start: nodes before pruning.
        cycles: how it is pruned; None: it is not.
        l2: penalty while pruning.
        cut: criterion by which it is cut to the paper's nodes after the cycles; "": it is not.
    """

    name: str
    paper: str
    start: tuple[int, int, int]
    cycles: CycleSettings | None = None
    l2: float = 0.0
    cut: str = ""


@dataclass(frozen=True)
class _Budget:
    """What all rows share: training in each cycle, the last training, and the digits."""

    cycle: TrainSettings
    final: TrainSettings
    data: Dataset
    held_out: Dataset


def run(request: Request) -> StudyResult:
    """Reference, ours, random at equal nodes, and the paper's bounds; the loss is of held-out digits.

    Raises:
        UsageError: no data was given.
        DataError: it is not images [1, 28, 28].
    """
    if request.data is None:
        raise UsageError(
            "reproduce autoencoder needs digits", remedy="--data mnist:DIR?split=test (or split=train)"
        )
    started = time.monotonic()
    runs = request.runs or (1 if request.quick else 3)
    epochs, last, limit = (1, 5, 3000) if request.quick else (3, 25, None)
    data, held_out = _split(request)
    budget = _Budget(
        TrainSettings(epochs=epochs, limit=limit, lr=0.01, **TRAINING),
        TrainSettings(epochs=last, limit=limit, lr=0.03, schedule="one-cycle", **TRAINING),
        data,
        held_out,
    )
    rows: list[Row] = []
    for plan in _plans(request.quick):
        found = []
        for seed in range(request.seed, request.seed + runs):
            trial = _trial(request, f"{len(rows)}-{seed}", plan, budget, seed)
            request.say(f"{plan.name}, seed {seed}: {_chain(trial.nodes)}, loss {trial.loss:.3g}")
            found.append(trial)
        rows.append(Row(plan.name, plan.paper, tuple(found)))
    verdict = _verdict(rows, _linear_code(data, held_out, PAPER[1] * CODE_PLACES))
    return StudyResult("autoencoder", tuple(rows), verdict, round(time.monotonic() - started, 1))


def _plans(quick: bool) -> list[Plan]:
    start, halvings, most = ((8, 16, 8), 1, 2) if quick else ((32, 64, 32), 3, 13)

    def halving(criterion: str) -> CycleSettings:
        return CycleSettings(criterion=criterion, ratio=0.5, max_cycles=halvings, samples=1000)

    bounds = CycleSettings(criterion=VARIANCE, outliers=2.0, max_cycles=most, samples=1000)
    said = "1-2-4-3-1, near 0"
    return [
        Plan("lossless reference", "1-4-16-4-1, near 0", LOSSLESS),
        Plan("ours: activation variance", said, start, halving(VARIANCE), cut=VARIANCE),
        Plan("random at equal nodes", "similar results", start, halving("random"), cut="random"),
        Plan("variance outside mean ± 2 var, L2 0.01", f"{said}, 10 ± 4 cycles", start, bounds, l2=0.01),
    ]


def _chain(nodes: tuple[int, ...]) -> str:
    return "-".join(map(str, (1, *nodes, 1)))


def _verdict(rows: list[Row], linear: float) -> str:
    reference, ours, random, _ = rows
    small = all(n <= p for trial in ours.trials for n, p in zip(trial.nodes, PAPER))
    mean = [sum(row.losses) / len(row.losses) for row in (reference, ours, random)]
    cycles = max(trial.cycles for trial in ours.trials)
    return (
        f"{_chain(PAPER)} or fewer {'reached' if small else 'not reached'} in {cycles} cycles; RMSE "
        f"{mean[1]:.3g}, {mean[1] / mean[0]:.1f} times the lossless reference's {mean[0]:.3g}; random at "
        f"equal nodes {mean[2]:.3g}, the best linear code of as many values (PCA) {linear:.3g}"
    )


def _images(data: Dataset) -> np.ndarray[Any, Any]:
    return torch.cat([batch.inputs[0] for batch in data.batches(1000)]).double().flatten(1).numpy()


def _linear_code(data: Dataset, held_out: Dataset, values: int) -> float:
    """RMSE of held-out digits in the span of the first principal components of the others."""
    digits, unseen = _images(data), _images(held_out)
    mean = digits.mean(0)
    components = np.linalg.eigh(np.cov(digits - mean, rowvar=False))[1][:, -values:]
    rest = (unseen - mean) - (unseen - mean) @ components @ components.T
    return float(np.sqrt(np.mean(rest**2)))


def _split(request: Request) -> tuple[Dataset, Dataset]:
    """The digits in [−1, 1], most for training and the rest held out."""
    assert request.data is not None
    inputs = _model(LOSSLESS, 0).inputs
    digits = open_data(request.data, inputs, "0.5/0.5")
    images = torch.cat([batch.inputs[0] for batch in digits.batches(1000)]).numpy()
    order = np.random.default_rng(0).permutation(len(images))
    held_out = round(HELD_OUT * len(images))
    opened = []
    for name, chosen in (("train", order[held_out:]), ("held_out", order[:held_out])):
        with request.writing(f"{name}.npz") as path:
            np.savez(path, x=images[chosen])
        opened.append(open_data(str(request.folder / path.name), inputs))
    return opened[0], opened[1]


def _model(nodes: tuple[int, int, int], seed: int) -> Model:
    torch.manual_seed(seed)
    return Model.from_module(Autoencoder(nodes).eval(), (torch.randn(2, 1, 28, 28),))


def _trial(request: Request, folder: str, plan: Plan, budget: _Budget, seed: int) -> Trial:
    """Cycles and a last cut (neither for the reference), then the same last training for all."""
    model, nodes, count = _model(plan.start, seed), plan.start, 0
    trace: tuple[tuple[int, int, float], ...] = ()
    if plan.cycles is not None:
        model, result = run_cycles(
            model,
            budget.data,
            replace(budget.cycle, seed=1000 * seed, l2=plan.l2),
            plan.cycles,
            folder=request.folder / folder,
            resume=True,
            validation=budget.held_out,
            progress=request.progress,
        )
        nodes = tuple(result.nodes.values())  # type: ignore[assignment]
        count = result.prunings
        trace = tuple((c.cycle, sum(c.nodes.values()), c.loss) for c in result.cycles)
    if plan.cut:
        model, nodes, count = _cut(model, nodes, plan.cut, budget.data, seed), PAPER, count + 1
    _, trained = train(
        model,
        budget.data,
        replace(budget.final, seed=1000 * seed),
        validation=budget.held_out,
        progress=request.progress,
    )
    return Trial(seed, nodes, trained.validation["loss"], count, trace)


def _cut(model: Model, nodes: tuple[int, ...], criterion: Any, data: Dataset, seed: int) -> Model:
    """Prune every layer to the paper's number of nodes."""
    for own, have, wanted in zip(NORMS, nodes, PAPER):
        others = tuple(name for name in NORMS if name != own)
        cut = PruneNodes(criterion=criterion, ratio=1 - wanted / have, exclude=others, compensate=False)
        model, _ = pipeline.run(model, [cut], Context(data=data, limit=1000, seed=seed))
    return model


AUTOENCODER = Study("autoencoder", "MNIST digits through 1-32-64-32-1 nodes: down to 1-2-4-3-1", True, run)
