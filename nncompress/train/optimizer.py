"""The optimizer, and what of its state a model keeps that has grown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nncompress.ir.edit.widen import Gathers, anywhere, gathered
from nncompress.train.settings import TrainSettings

Parameters = Mapping[str, torch.nn.Parameter]


def make_optimizer(settings: TrainSettings, parameters: list[Any]) -> torch.optim.Optimizer:
    """The one that `settings` ask for."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def carry_over(
    old: torch.optim.Optimizer,
    new: torch.optim.Optimizer,
    before: Parameters,
    after: Parameters,
    gathers: Mapping[str, Gathers],
) -> None:
    """Give the optimizer of the grown parameters the state that the old one has; new places start at zero.

    Args:
        before, after: the parameters of `old` and `new` by name.
    """
    for name, parameter in after.items():
        known = before.get(name)
        if known is None or known not in old.state:
            continue
        dims = gathers.get(name, {})
        state = {}
        for key, value in old.state[known].items():
            if isinstance(value, Tensor) and value.shape == known.shape:
                wide = gathered(value, dims)
                fresh = new_places(dims, value.dim()).to(value.device)
                state[key] = torch.empty_like(parameter).copy_(wide.masked_fill(fresh, 0)).detach()
            else:
                state[key] = value
        new.state[parameter] = state


def new_places(dims: Gathers, rank: int) -> Tensor:
    """Bool, broadcastable to the grown tensor: what was not there before."""
    return anywhere({dim: torch.from_numpy(gather.new) for dim, gather in dims.items()}, rank)
