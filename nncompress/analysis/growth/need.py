"""Which groups need units: one score per group, the larger the more.

| where      | score                                                                                     |
|------------|-------------------------------------------------------------------------------------------|
| "uniform"  | 1                                                                                         |
| "std"      | standard deviation of what the group's units send on, mean over the units (METHODS of the |
|            | dynamic-capacity thesis, §4.3, after He et al. 2016, "Deep Residual Learning", §4.2)      |
| "gradient" | norm of the loss's gradient at the outgoing weights of candidate units, per unit          |

Candidates are new units as growth would add them: they change no output, so candidates of all groups are
judged together, and what the gradient says of one holds whatever the others do (to first order).
"""

from __future__ import annotations

import torch

from nncompress.analysis.answer import answer_index
from nncompress.analysis.couplings import Couplings
from nncompress.analysis.curvature.autograd import gradient_batch_size
from nncompress.analysis.curvature.losses import check_labels, task_loss
from nncompress.analysis.growth.initial import owned
from nncompress.analysis.growth.new_units import NewUnits
from nncompress.analysis.growth.proof import grow_proven
from nncompress.analysis.growth.units import normalized_groups
from nncompress.analysis.importance.activations import activation_statistics
from nncompress.analysis.importance.choices import group_choices
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.edit.widen import anywhere
from nncompress.progress import Progress

CANDIDATES = 4  # per group


def need(
    where: str,
    model: Model,
    couplings: Couplings,
    data: Dataset | None,
    *,
    limit: int | None,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> dict[str, float]:
    """Group name -> score.

    Raises:
        DataError: "gradient", and the labels do not fit the model's answer.
    """
    if where == "uniform":
        return {group.name: 1.0 for group in couplings.groups}
    assert data is not None
    if where == "std":
        found = activation_statistics(
            model,
            group_choices(model, couplings),
            data,
            limit,
            batch_size,
            lambda statistics: statistics.variance.sqrt(),
            progress,
        )
        return {name: float(scores.mean()) for name, scores in found.items()}
    return _gradients(model, couplings, data, limit, batch_size, seed, progress)


def require_fitting_labels(model: Model, data: Dataset) -> None:
    """A gradient can be taken: the labels of the first samples fit the model's answer.

    Raises:
        DataError: they do not, or there are none.
    """
    for batch in data.batches(data.fixed_batch or 2, limit=data.fixed_batch or 2):
        check_labels(model.outputs_of(*batch.inputs)[answer_index(model, data)], batch.labels, data.spec)
        return


def _gradients(
    model: Model,
    couplings: Couplings,
    data: Dataset,
    limit: int | None,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> dict[str, float]:
    """Groups that take no fresh units get the mean of the others' scores; all get 1 where none takes any."""
    whole = normalized_groups(couplings)
    wanted = {g.name: [g.size - 1] * CANDIDATES for g in couplings.groups if g.name not in whole}
    grown = grow_proven(model, NewUnits(wanted, seed=seed), couplings)
    parameters = {n: p for n, p in grown.model.graph_module.named_parameters() if n in grown.gathers}
    if not parameters:
        return {group.name: 1.0 for group in couplings.groups}
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    samples, planned = 0, data.planned_samples(limit)
    for batch in data.batches(gradient_batch_size(model, batch_size), limit):
        progress.step("gradients of candidate nodes", samples, planned)
        with torch.enable_grad():
            outputs = grown.model.outputs_of(*batch.inputs)
            loss = task_loss(outputs[answer_index(model, data)], batch, data.spec)
        for name, gradient in zip(
            parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        ):
            if gradient is not None:
                total[name] += gradient
        samples += len(batch)
    scores = {}
    for name in wanted:
        if name in grown.refused:
            continue
        group, squares = couplings[name], 0.0
        for member in group.members:
            gather = grown.gathers.get(member.tensor, {}).get(member.dim)
            if member.tensor in total and gather is not None:
                new = anywhere({member.dim: gather.chosen(owned([group], member.tensor, member.dim, gather))},
                               total[member.tensor].dim())  # fmt: skip
                squares += float((total[member.tensor] * new).double().square().sum())
        scores[name] = (squares / CANDIDATES) ** 0.5 / max(samples, 1)
    usual = sum(scores.values()) / len(scores) if scores else 1.0
    return {group.name: scores.get(group.name, usual) for group in couplings.groups}
