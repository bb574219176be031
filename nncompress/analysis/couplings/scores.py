"""The magnitude of units: what needs no data."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nncompress.analysis.couplings.groups import Group
from nncompress.ir import Model


def magnitude(model: Model, group: Group, *, power: int) -> NDArray[np.float64]:
    """Sum of |w|^power of each unit over the layers that produce it (all members if none): `[units]`."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.producers or group.members:
        values = model.tensor(member.tensor).detach().double().abs().pow(power)
        per_index = values.movedim(member.dim, 0).reshape(values.shape[member.dim], -1).sum(1)
        own = torch.from_numpy(member.indices)
        total.index_add_(0, torch.from_numpy(member.unit)[own], per_index[own])
    return total.numpy()
