"""How few channels does an autoencoder of digits need? (Çallı 2017, §2.1.3 and §3.1.2)

1-32-64-32-1 nodes, pruned in cycles. 1-4-16-4-1 is the reference that could copy its input without loss (as
many values as pixels in every layer); the papers reached 1-2-4-3-1 with activation variance, outlier bounds
and L2.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from nncompress.cycles import CycleSettings, run_cycles
from nncompress.data import Dataset, open_data
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.studies.study import Request, Row, Study, StudyResult, Trial
from nncompress.train import TrainSettings, train
from nncompress.zoo.small_nets import Autoencoder

PAPER = (2, 4, 3)
LOSSLESS = (4, 16, 4)
START = (32, 64, 32)
HELD_OUT = 0.2
VARIANCE = "activation-variance"
TRAINING: dict[str, Any] = {
    "batch": 100,
    "optimizer": "adam",
    "lr": 0.01,
    "task": "reconstruction",
    "loss": "rmse",
}


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
    epochs, last = (1, 1) if request.quick else (4, 20)
    data, held_out = _split(request)
    cycling = TrainSettings(epochs=epochs, limit=1000 if request.quick else None, **TRAINING)
    final = TrainSettings(epochs=last, limit=1000 if request.quick else None, **TRAINING)
    paper = TrainSettings(epochs=epochs, limit=cycling.limit, l2=0.01, **TRAINING)

    def halving(criterion: str) -> CycleSettings:
        return CycleSettings(criterion=criterion, ratio=0.5, max_cycles=5, records=1000)

    bounds = CycleSettings(criterion=VARIANCE, outliers=2.0, max_cycles=14, records=1000)
    plans = [
        ("lossless reference 1-4-16-4-1, trained", "near 0", LOSSLESS, None, cycling),
        (
            "ours: activation variance, halved",
            "1-2-4-3-1, near 0",
            START,
            halving("activation-variance"),
            cycling,
        ),
        ("random at equal nodes", "similar results", START, halving("random"), cycling),
        ("variance outside mean ± 2 var, L2 0.01", "1-2-4-3-1 in 10 ± 4 cycles", START, bounds, paper),
    ]
    rows: list[Row] = []
    for name, said, nodes, cycles, training in plans:
        found = []
        for number in range(runs):
            seed = request.seed + number
            folder = f"{len(rows)}-{seed}"
            trial = _trial(request, folder, nodes, cycles, training, final, seed, data, held_out)
            request.say(f"{name}, seed {seed}: {'-'.join(map(str, trial.nodes))}, loss {trial.loss:.3g}")
            found.append(trial)
        rows.append(Row(name, said, tuple(found)))
    return StudyResult("autoencoder", tuple(rows), _verdict(rows), round(time.monotonic() - started, 1))


def _verdict(rows: list[Row]) -> str:
    reference, ours, random, _ = rows
    small = all(n <= p for trial in ours.trials for n, p in zip(trial.nodes, PAPER))
    mean = [sum(row.losses) / len(row.losses) for row in (reference, ours, random)]
    cycles = max(trial.cycles for trial in ours.trials)
    return (
        f"1-2-4-3-1 or fewer {'reached' if small else 'not reached'} in {cycles} cycles; RMSE {mean[1]:.3g}, "
        f"{mean[1] / mean[0]:.1f} times the lossless reference's; random at equal nodes {mean[2]:.3g}"
    )


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
        path = request.folder / f"{name}.npz"
        np.savez(path, x=images[chosen])
        opened.append(open_data(str(path), inputs))
    return opened[0], opened[1]


def _model(nodes: tuple[int, int, int], seed: int) -> Model:
    torch.manual_seed(seed)
    return Model.from_module(Autoencoder(nodes).eval(), (torch.randn(2, 1, 28, 28),))


def _trial(
    request: Request,
    folder: str,
    nodes: tuple[int, int, int],
    cycles: CycleSettings | None,
    training: TrainSettings,
    final: TrainSettings,
    seed: int,
    data: Dataset,
    held_out: Dataset,
) -> Trial:
    """Cycles (none for the reference), then the same last training for all."""
    model = _model(nodes, seed)
    count, trace = 0, tuple[tuple[int, int, float], ...]()
    if cycles is not None:
        model, result = run_cycles(
            model,
            data,
            TrainSettings(**{**vars(training), "seed": 1000 * seed}),
            cycles,
            folder=request.folder / folder,
            validation=held_out,
            progress=request.progress,
        )
        nodes = tuple(result.nodes.values())  # type: ignore[assignment]
        count = len(result.cycles)
        trace = tuple((c.cycle, sum(c.nodes.values()), c.loss) for c in result.cycles)
    settings = TrainSettings(**{**vars(final), "seed": 1000 * seed})
    _, trained = train(model, data, settings, validation=held_out, progress=request.progress)
    return Trial(seed, tuple(nodes), trained.validation["loss"], count, trace)


AUTOENCODER = Study("autoencoder", "MNIST digits through 1-32-64-32-1 nodes: down to 1-2-4-3-1", True, run)
