"""Modules whose parameters take no memory: made so, and traced so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from nncompress.ir import Model


@contextmanager
def without_weights() -> Iterator[None]:
    """Meanwhile parameters are made on the meta device: shapes without values.

    Buffers are made as ever, since some are in no checkpoint.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # a tied one is there already
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextmanager
def stood_in_for(module: nn.Module) -> Iterator[None]:
    """Meanwhile all parameters on the meta device are memory of the CPU that nobody has touched, the same for
    all: enough to trace the module, which looks at no value."""
    empty = list(dict.fromkeys(each for each in module.parameters() if each.is_meta))
    room = torch.empty(max((each.numel() for each in empty), default=0) + len(empty))
    taken = {
        each: nn.Parameter(room[place : place + each.numel()].view(each.shape), requires_grad=False)
        for place, each in enumerate(empty)  # each begins elsewhere, so that none is taken for another
    }
    replace(module, taken)
    try:
        yield
    finally:
        replace(module, {value: key for key, value in taken.items()})


def emptied(model: Model) -> None:
    """Put the parameters of a traced model on the meta device, in place."""
    graph_module = model.graph_module
    replace(
        graph_module,
        {
            each: nn.Parameter(torch.empty(each.shape, device="meta"), requires_grad=False)
            for each in graph_module.parameters()
        },
    )


def replace(module: nn.Module, instead: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Put parameters in the place of others, wherever these stand."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None and parameter in instead:
                each._parameters[name] = instead[parameter]
