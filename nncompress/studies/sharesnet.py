"""ShaResNet: one 3×3 weight for the residual blocks of a stage (Boulch 2018, Table 1 and 2)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, Share
from nncompress.pipeline import run as run_passes
from nncompress.results import Result
from nncompress.studies.classifiers import budget, settings_for, trained_with_seeds
from nncompress.studies.comparison import ComparisonResult, Entry, Measured, measure
from nncompress.studies.images import Crops
from nncompress.studies.small_model import images
from nncompress.studies.study import Request, Study
from nncompress.zoo.registry import architecture

PAPER_EPOCHS = 200
QUICK_NETWORKS = 3  # of Table 1


@dataclass(frozen=True)
class Network:
    """A row of Table 1: parameters in M and convolutions as the paper prints them; depth: weighted layers."""

    name: str
    depth: int
    parameters: float
    shared_parameters: float
    convolutions: int
    shared_convolutions: int


TABLE_1 = (
    Network("resnet164", 164, 1.70, 0.93, 164, 113),
    Network("wrn-40-4", 40, 8.95, 5.85, 40, 25),
    Network("resnet34", 34, 21.8, 13.6, 34, 20),
    Network("wrn-28-10", 28, 36.54, 26.86, 28, 19),
    Network("resnet50", 50, 25.6, 20.5, 50, 38),
    Network("resnet101", 101, 44.5, 29.4, 101, 72),
    Network("resnet152", 152, 60.2, 36.8, 152, 106),
)


@dataclass(frozen=True)
class Counted:
    """A network of Table 1, built and shared.

    Attributes:
        parameters, shared_parameters: trained values.
        shared_convolutions: the depth less the layers that lost their own weight.
    """

    network: Network
    parameters: int
    shared_parameters: int
    shared_convolutions: int

    @property
    def exact(self) -> bool:
        """The parameters are the paper's, to the digits that it prints."""
        pairs = (
            (self.parameters, self.network.parameters),
            (self.shared_parameters, self.network.shared_parameters),
        )
        return all(round(ours / 1e6, _digits(paper)) == paper for ours, paper in pairs)


@dataclass(frozen=True)
class SharingResult(Result):
    """Table 1 counted anew; accuracy: of networks trained with and without sharing, where data was given."""

    kind: ClassVar[str] = "sharing"

    study: str
    networks: tuple[Counted, ...]
    accuracy: ComparisonResult | None
    verdict: str
    seconds: float


def run(request: Request) -> SharingResult:
    """Count the parameters of every network; with data, train one with and without sharing.

    Raises:
        DataError: not labelled colour images of at least 32×32.
    """
    started = time.monotonic()
    chosen = TABLE_1[:QUICK_NETWORKS] if request.quick else TABLE_1
    counted = []
    for number, network in enumerate(chosen):
        request.progress.step(f"sharing in {network.name}", number, len(chosen))
        counted.append(_count(network))
    accuracy = _accuracy(request) if request.data is not None else None
    exact = sum(each.exact for each in counted)
    verdict = f"parameters as the paper prints them in {exact} of {len(counted)} networks"
    if accuracy is not None:
        verdict += f"; {accuracy.verdict}"
    seconds = round(time.monotonic() - started, 1)
    return SharingResult("sharesnet", tuple(counted), accuracy, verdict, seconds)


def shared(model: Model, seed: int = 0) -> Model:
    return run_passes(model, [Share(saving=1)], Context(data=None, seed=seed))[0]


def _count(network: Network) -> Counted:
    model = architecture(network.name).build()
    before = _trained_values(model)
    tied = shared(model)
    weights = [id(tied.tensor(layer.weight.name)) for layer in layers(tied)]
    lost = len(weights) - len(set(weights))
    return Counted(network, before, _trained_values(tied), network.depth - lost)


def _trained_values(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.graph_module.parameters())


def _accuracy(request: Request) -> ComparisonResult:
    """The paper's smallest network where there is a GPU to train it, else one of 20 layers."""
    name = "resnet164" if torch.cuda.is_available() and not request.quick else "resnet20"
    started = time.monotonic()
    train, test = images(request, "sharesnet")
    settings = settings_for(request, PAPER_EPOCHS, flip=True)
    entries = []
    paper = {"resnet164": ("94.54", "93.8")}.get(name, ("", ""))
    build = partial(architecture(name).build, classes=train.classes)
    made: dict[str, Callable[..., Model]] = {
        name: build,
        f"{name}-shared": lambda seed: shared(build(seed=seed)),
    }
    for (label, make), said in zip(made.items(), paper):
        models = trained_with_seeds(request, label, make, train, settings)
        entries.append(Entry(label, models, Crops(test, models[0].inputs), {"top1": said} if said else {}))
    rows, warnings = measure(request, entries, paired=True, time_budget=4)
    return ComparisonResult(
        "sharesnet",
        ("parameters", "file_size", "top1", "difference", "speedup"),
        rows,
        budget(request, train, settings, PAPER_EPOCHS),
        _verdict(rows),
        round(time.monotonic() - started, 1),
        ("paper: sharing costs 0.74 points on ResNet-164 (CIFAR-10), at most 1 on any network", *warnings),
    )


def _verdict(rows: tuple[Measured, ...]) -> str:
    plain, tied = rows
    saved = 1 - tied.parameters / plain.parameters
    gap = 100 * (tied.mean_top1 - plain.mean_top1)
    return f"{plain.name} shared has {100 * saved:.0f} % fewer parameters, {gap:+.2f} points"


def _digits(value: float) -> int:
    return len(str(value).partition(".")[2])


SHARESNET = Study(
    "sharesnet",
    "Table 1 of ShaResNet counted; accuracy with and without sharing",
    False,
    run,
    ("data", "runs", "epochs", "keep"),
    for_data=("runs", "epochs", "keep", "seed"),
)
