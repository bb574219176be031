"""Growth while training: when the loss stops falling, add nodes and go on with the same optimizer.

Nothing happens in a step, so a run that may grow costs what plain training of the same size costs. Every
growth is recorded as what was added beside what; a resumed run adds the same before it reads the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings
from nncompress.analysis.growth import (
    Amount,
    Budget,
    Fit,
    Growth,
    NewUnits,
    Wish,
    grow_step,
    grow_units,
    is_quantized,
    largest_within,
    require_fitting_labels,
)
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.benchmarking.latency.target import clocked
from nncompress.data import Dataset
from nncompress.errors import UnsupportedError, UsageError
from nncompress.ir import Model
from nncompress.ir.edit.widen import Gathers
from nncompress.progress import Progress
from nncompress.train.distributed import Group
from nncompress.train.growth.settings import AMOUNTS, DEFAULT_BY, GrowSettings
from nncompress.train.optimizer import Parameters, new_places
from nncompress.train.settings import TrainSettings

SAMPLES = 512  # that need is measured on


@dataclass
class Plateau:
    """Tells when a loss has stopped falling.

    Args:
        patience: losses in a row without improvement.
        delta: relative fall below the best that counts as one.
    """

    patience: int
    delta: float
    best: float = math.inf
    waited: int = 0

    def reached(self, loss: float) -> bool:
        """Take in the next loss. The loss after a plateau is measured against the best before it."""
        if loss < self.best - self.delta * abs(self.best) or not math.isfinite(self.best):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited < self.patience:
            return False
        self.waited = 0
        return True


@dataclass
class Grown:
    """What a checkpoint needs to know of growth.

    Attributes:
        steps: per growth, in order: `beside` (group -> the unit that each new one was placed beside),
            `copies`, `seed`, `epoch`.
        full: nothing more can grow within the bounds.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    best: float = math.inf
    waited: int = 0
    full: bool = False


class Growing:
    """The growth of one run."""

    def __init__(
        self,
        settings: GrowSettings,
        model: Model,
        data: Dataset,
        training: TrainSettings,
        group: Group,
        progress: Progress,
    ) -> None:
        if training.match:
            raise UsageError("train: --match needs layers of one width", remedy="leave --grow or --match out")
        if is_quantized(model):
            raise UnsupportedError(
                "train: a quantized model cannot grow", remedy="grow first, then nncompress quantize"
            )
        bound = Budget(settings.max_macs, settings.max_params)
        by = DEFAULT_BY if all(getattr(settings, name) is None for name in AMOUNTS) else settings.grow_by
        amount = Amount(by, settings.grow_factor, settings.grow_quarter_of)
        self.settings, self.data, self.group, self.progress = settings, data, group, progress
        self.wish = Wish(
            amount,
            bound,
            settings.grow_where,
            settings.grow_groups,
            settings.grow_init,
            settings.grow_exclude,
        )
        if settings.grow_where == "gradient":
            require_fitting_labels(model, data)
        self.state = Grown()
        _refuse_bound(model, bound)
        self.latency = None  # of the model as it began: exported here, so that a refusal comes at once
        if settings.max_latency is not None and group.main:
            self.latency = ModelLatency(model, progress, clocked(None))

    @classmethod
    def of(
        cls,
        settings: GrowSettings | None,
        model: Model,
        data: Dataset,
        training: TrainSettings,
        group: Group,
        progress: Progress,
    ) -> Growing | None:
        """None for a run that never grows.

        Raises:
            UsageError, UnsupportedError, DataError: the model cannot grow so, on these data.
        """
        if settings is None or settings.grow == "never":
            return None
        return cls(settings, model, data, training, group, progress)

    def due(self, loss: float) -> bool:
        """The epoch that ended with this loss was the last of a plateau, and there is room."""
        state = self.state
        plateau = Plateau(self.settings.grow_patience, self.settings.grow_delta, state.best, state.waited)
        reached = plateau.reached(loss)
        state.best, state.waited = plateau.best, plateau.waited
        return reached and not state.full

    def grow(self, model: Model, batch: int, epoch: int, seed: int) -> tuple[Growth, Fit]:
        """The grown model (on the CPU) and how it came about; how much of the wish kept within the latency,
        measured as a multiple of the latency that the model began with."""
        seed += len(self.state.steps)

        def step(scale: float) -> Growth:
            wish = replace(self.wish, amount=replace(self.wish.amount, scale=scale))
            return grow_step(
                model, wish, self.data, limit=SAMPLES, batch_size=batch, seed=seed, progress=self.progress
            )

        fit = self.group.agree(lambda: self._fit(step))
        grown = step(fit.scale)
        self.state.full = not grown.added or fit.scale < 1  # what had to be cut was the last of it
        if grown.added:
            beside = {name: list(units) for name, units in grown.beside.items()}
            copies = sorted(grown.copies & grown.added.keys())
            self.state.steps.append({"beside": beside, "copies": copies, "seed": seed, "epoch": epoch})
        return grown, fit

    def _fit(self, step: Callable[[float], Growth]) -> Fit:
        latency, most = self.latency, self.settings.max_latency
        if latency is None or most is None:
            return Fit(1.0, math.nan)
        return largest_within(most, lambda grown: latency.share(grown.model).value, step)

    def replay(self, model: Model) -> dict[str, Gathers]:
        """Widen a model that has not grown as the recorded steps did, in place; the gathers of the last."""
        gathers: dict[str, Gathers] = {}
        for step in self.state.steps:
            gathers = grow_units(model, NewUnits(step["beside"], step["copies"], seed=step["seed"]))
        return gathers

    def holds(self, epoch: int) -> bool:
        """In the epoch after so many, what was there before the last growth stays as it is."""
        steps = self.state.steps
        return bool(steps) and epoch < steps[-1]["epoch"] + self.settings.hold


def _refuse_bound(model: Model, bound: Budget) -> None:
    """The model has room to grow.

    Raises:
        UsageError: it is larger than the bound.
    """
    now = cost(model)
    for flag, most, got in (
        ("--max-macs", bound.macs, now.macs),
        ("--max-params", bound.params, now.parameters),
    ):
        if most is not None and got > most:
            raise UsageError(
                f"train: the model is larger than {flag}", got=f"{got:,}", expected=f"at most {most:,.0f}"
            )
    if not find_couplings(model).groups:
        raise UsageError(
            "train: the model has no nodes that can be added to",
            remedy="nncompress inspect --units shows why",
        )


class Held:
    """What was there before a growth, kept as it was while new nodes train."""

    def __init__(self, parameters: Parameters, gathers: Mapping[str, Gathers]) -> None:
        self._kept = [
            (p, new_places(gathers.get(name, {}), p.dim()).to(p.device), p.detach().clone())
            for name, p in parameters.items()
        ]

    def put_back(self) -> None:
        """After a step of the optimizer."""
        with torch.no_grad():
            for parameter, new, value in self._kept:
                parameter.copy_(torch.where(new, parameter, value))
