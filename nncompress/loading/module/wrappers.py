"""Modules that hold another one and compute what it does: `torch.compile`, data parallelism."""

from __future__ import annotations

from torch import nn


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
        for name, child in parent.named_children():
            parent._modules[name] = held(child)
