"""Second moments of what the layers of a group read, with the ridge that samples held out choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from nncompress.analysis.compensation.held_out import fit_and_decide
from nncompress.analysis.observe.moments import RIDGE_OF_FEW, RIDGES, InputMoments, downhill, with_ridge
from nncompress.analysis.observe.shelf import Shelf
from nncompress.ir import Model
from nncompress.ir.layers.weights import Layer
from nncompress.passes.base import Context
from nncompress.passes.share.fit import Problem, fit


class GroupMoments:
    """E[x xᵀ] of every layer of `groups`, which are asked for in this order."""

    def __init__(self, model: Model, groups: Sequence[Sequence[Layer]], context: Context) -> None:
        assert context.data is not None
        fitted, held = fit_and_decide(model, context.data, context.batch_size, context.limit)
        readers = {layer.name: [layer] for group in groups for layer in group}
        gather = partial(InputMoments, model, readers, seed=context.seed, progress=context.progress)
        self._fitted, self._held = gather(fitted), None if held is fitted else gather(held)
        self._shelf = Shelf()

    def given_to(self, problems: Sequence[Problem], names: Sequence[str]) -> list[Problem]:
        """The problems of the layers of a group, with the moments of all samples and the group's ridge."""
        if self._held is None:
            return [
                self._lifted(problem, self._fitted[name].second, RIDGE_OF_FEW)
                for problem, name in zip(problems, names)
            ]
        parts, fitted, held, shares = Shelf(beside=self._shelf), [], [], []
        for name in names:
            ours, others = self._fitted[name], self._held[name]
            fitted.append(parts.keep(ours.second))
            held.append(parts.keep(others.second))
            shares.append(others.count / (ours.count + others.count))
        ridge = held_out_ridge(problems, fitted, held)
        return [
            self._lifted(problem, ours().lerp(others(), share), ridge)
            for problem, ours, others, share in zip(problems, fitted, held, shares)
        ]

    def _lifted(self, problem: Problem, moment: Tensor, ridge: float) -> Problem:
        return replace(problem, moment=self._shelf.keep(with_ridge(moment, ridge)))


def held_out_ridge(
    problems: Sequence[Problem], fitted: Sequence[Callable[[], Tensor]], held: Sequence[Callable[[], Tensor]]
) -> float:
    """The ridge of `fitted` whose shared weight leaves the least error, of the layers' outputs in shares of
    these, on inputs of moments `held`; of both one per problem, float64 [groups, in, in]."""
    judges = [replace(problem, moment=moment) for problem, moment in zip(problems, held)]
    powers = [max(judge.power(judge.weight), 1e-300) for judge in judges]

    def error(ridge: float) -> float:
        lifted = [
            replace(problem, moment=partial(_ridged, moment, ridge))
            for problem, moment in zip(problems, fitted)
        ]
        found = fit(lifted, turns=1)
        moved = (judge.power(judge.weight - found.weight_of(k)) for k, judge in enumerate(judges))
        return sum(change / power for change, power in zip(moved, powers))

    return downhill(error, RIDGES[0])


def _ridged(moment: Callable[[], Tensor], ridge: float) -> Tensor:
    return with_ridge(moment(), ridge)
