"""Modules inside others that give way: wrappers (`torch.compile`, data parallelism) to what they hold,
scripted ones to their graph."""

from __future__ import annotations

import copy

import torch
from torch import nn

from nncompress.loading.torchscript import GraphModule


def held(module: nn.Module) -> nn.Module:
    """What wrappers around `module` hold."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module = compiled
        else:
            return module


def take_out_wrappers(module: nn.Module) -> None:
    """Put what they hold in the place of the wrappers inside `module`: names are then the network's own."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # named_children leaves out the second name of one
            parent._modules[name] = None if child is None else held(child)


def with_graphs_of_scripts(module: nn.Module) -> nn.Module:
    """The module, or a copy of it with the scripted modules inside replaced by what `torch.export` traces.

    Raises:
        UnsupportedError: one of them is not read (see `GraphModule`).
    """
    if not any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
        return module
    copied = copy.deepcopy(module)
    graphs: dict[int, nn.Module] = {}  # one for every place that a module has
    for parent in [each for each in copied.modules() if not isinstance(each, torch.jit.ScriptModule)]:
        for name, child in parent._modules.items():
            if isinstance(child, torch.jit.ScriptModule):
                parent._modules[name] = graphs.setdefault(id(child), GraphModule(child))
    return copied
