"""Initial weights as the papers choose them; biases start at 0, batch norms at scale 1 and shift 0."""

from __future__ import annotations

from torch import nn

WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def he(module: nn.Module) -> nn.Module:
    """Normal weights of variance 2 / fan-out in convolutions (He et al. 2015b, as in fb.resnet.torch)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return _zero_biases(module)


def xavier(module: nn.Module) -> nn.Module:
    """Uniform weights of variance 2 / (fan-in + fan-out) (Glorot and Bengio 2010)."""
    for layer in module.modules():
        if isinstance(layer, WEIGHTED):
            nn.init.xavier_uniform_(layer.weight)
    return _zero_biases(module)


def _zero_biases(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, WEIGHTED) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module
