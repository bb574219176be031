"""Criteria that look at weights alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.importance.choices import Choice
from nncompress.analysis.importance.ranking import Scores
from nncompress.ir import Model


def per_unit(choice: Choice, tensor: str, dim: int, values: Tensor) -> Tensor:
    """Sum `values`, shaped like the stored `tensor`, over what each unit owns along `dim`: [units]."""
    total = torch.zeros(choice.size, dtype=torch.float64)
    for member in choice.members:
        if (member.tensor, member.dim) == (tensor, dim):
            per_index = values.double().movedim(dim, 0).reshape(values.shape[dim], -1).sum(1)
            own = torch.from_numpy(member.indices)
            total.index_add_(0, torch.from_numpy(member.unit)[own], per_index[own])
    return total


def magnitude(model: Model, choice: Choice, power: int) -> Scores:
    """The L1 or L2 norm of what each unit owns in the layers that make it (else in all its tensors).

    Li et al. 2017, "Pruning Filters for Efficient ConvNets": sum of |w|; here over all coupled layers.
    """
    members = [m for m in choice.members if m.role == "output"] or list(choice.members)
    total = torch.zeros(choice.size, dtype=torch.float64)
    for m in members:
        total += per_unit(choice, m.tensor, m.dim, model.tensor(m.tensor).detach().abs().double().pow(power))
    return total.pow(1 / power).numpy()


def at_random(choice: Choice, generator: np.random.Generator) -> Scores:
    """The baseline: a random order (the papers found it hard to beat)."""
    return generator.random(choice.size)
