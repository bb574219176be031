"""Which units matter least: criteria, and how many go.

A criterion ranks the units of every choice. Adding one is one entry in `CRITERIA` and its name among the
options of `prune-nodes`, or an entry point of another package (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nncompress.analysis.importance.activations import (
    activation_statistics,
    activity,
    fisher,
    gradient_products,
    optimal_brain_damage,
    taylor,
    variance,
)
from nncompress.analysis.importance.choices import Choice, group_choices, separate_choices
from nncompress.analysis.importance.magnitude import at_random, magnitude
from nncompress.analysis.importance.ranking import Ranking, Scores
from nncompress.analysis.importance.reconstruction import Reconstruction
from nncompress.data import Dataset
from nncompress.extensions import Registry
from nncompress.ir import Model
from nncompress.progress import NullProgress, Progress

Rankings = dict[str, Ranking]


@dataclass(frozen=True)
class Setting:
    """What a criterion may look at.

    Attributes:
        data: calibration samples; None only for criteria that need none.
        limit, batch_size: how many samples, and how many at a time.
    """

    model: Model
    choices: Sequence[Choice]
    data: Dataset | None = None
    limit: int | None = None
    batch_size: int = 64
    seed: int = 0
    progress: Progress = field(default_factory=NullProgress)

    @property
    def samples(self) -> Dataset:
        assert self.data is not None  # the pass refuses before
        return self.data


@dataclass(frozen=True)
class Criterion:
    """One way to rank units.

    Attributes:
        rank: choice name -> ranking.
        needs: "" for weights alone, "data", or "labels".
        comparable: the losses of different choices are in one unit, so that a budget can weigh them.
    """

    rank: Callable[[Setting], Rankings]
    needs: str
    comparable: bool


def scored(score: Callable[[Setting], dict[str, Scores]]) -> Callable[[Setting], Rankings]:
    """Ranking by scores: choice name -> a number per unit [units], the least important lowest."""

    def rank(setting: Setting) -> Rankings:
        return {name: Ranking.from_scores(scores) for name, scores in score(setting).items()}

    return rank


def _magnitude(power: int) -> Callable[[Setting], dict[str, Scores]]:
    return lambda s: {c.name: magnitude(s.model, c, power) for c in s.choices}


def _random(s: Setting) -> dict[str, Scores]:
    generator = np.random.default_rng(s.seed)
    return {c.name: at_random(c, generator) for c in s.choices}


def _count(s: Setting) -> dict[str, Scores]:
    return activation_statistics(s.model, s.choices, s.samples, s.limit, s.batch_size, activity, s.progress)


def _variance(s: Setting) -> dict[str, Scores]:
    return activation_statistics(s.model, s.choices, s.samples, s.limit, s.batch_size, variance, s.progress)


def _taylor(s: Setting) -> dict[str, Scores]:
    return taylor(gradient_products(s.model, s.choices, s.samples, s.limit, s.batch_size, s.progress))


def _fisher(s: Setting) -> dict[str, Scores]:
    return fisher(gradient_products(s.model, s.choices, s.samples, s.limit, s.batch_size, s.progress))


def _damage(s: Setting) -> dict[str, Scores]:
    return optimal_brain_damage(s.model, s.choices, s.samples, s.limit, s.batch_size, s.seed, s.progress)


def _reconstruction(s: Setting) -> Rankings:
    return Reconstruction(
        s.model, s.choices, (), s.samples, limit=s.limit, batch_size=s.batch_size, seed=s.seed,
        progress=s.progress,
    ).rankings  # fmt: skip


_OWN = {
    "reconstruction": Criterion(_reconstruction, "data", comparable=True),
    "l1": Criterion(scored(_magnitude(1)), "", comparable=False),
    "l2": Criterion(scored(_magnitude(2)), "", comparable=False),
    "activation-count": Criterion(scored(_count), "data", comparable=False),
    "activation-variance": Criterion(scored(_variance), "data", comparable=False),
    "taylor": Criterion(scored(_taylor), "labels", comparable=True),
    "fisher": Criterion(scored(_fisher), "labels", comparable=True),
    "obd": Criterion(scored(_damage), "labels", comparable=True),
    "random": Criterion(scored(_random), "", comparable=False),
}


def _fault(name: str, found: object) -> str:
    if not isinstance(found, Criterion):
        return f"{found!r:.80} is no nncompress.analysis.importance.Criterion"
    needs = ("", "data", "labels")
    return "" if found.needs in needs else f"it needs {found.needs!r}, which is none of {needs}"


CRITERIA: Registry[Criterion] = Registry("nncompress.criteria", _OWN, _fault)


def rank(criterion: str, setting: Setting) -> Rankings:
    """The rankings of a criterion by name.

    Raises:
        ExtensionError: it is another package's, and ranks something else than the units of the choices.
    """
    rankings = CRITERIA[criterion].rank(setting)
    if CRITERIA.origin(criterion):
        for choice in setting.choices:
            ranking = rankings.get(choice.name)
            if ranking is None:
                raise CRITERIA.broken(criterion, f"{choice.name} got no ranking")
            if np.shape(ranking.scores) != (choice.size,) or np.isnan(ranking.scores).any():
                got = f"scores of shape {list(np.shape(ranking.scores))}, or NaN"
                raise CRITERIA.broken(criterion, f"{choice.name} of {choice.size} nodes got {got}")
    return rankings


__all__ = [
    "CRITERIA",
    "Choice",
    "Criterion",
    "Ranking",
    "Rankings",
    "Reconstruction",
    "Setting",
    "group_choices",
    "rank",
    "scored",
    "separate_choices",
]
