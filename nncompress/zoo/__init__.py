"""The papers' architectures, as plain `torch.nn` modules with their initial weights.

    from nncompress.zoo import resnet20                   # resnet20(classes=10, channels=3) -> nn.Module
    nncompress new resnet20 -o model.pt2
    nncompress inspect weights.safetensors --arch nncompress.zoo:resnet20 --input 1x3x32x32

`ARCHITECTURES` describes them all. Importing this package does not import torch; the first network does.
"""

from __future__ import annotations

from importlib import import_module

from nncompress.zoo.registry import ARCHITECTURES, Architecture, architecture

__all__ = ["ARCHITECTURES", "Architecture", "architecture"]

_MODULE_OF = {each.factory: each.module for each in ARCHITECTURES.values()}


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(import_module(f"nncompress.zoo.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'nncompress.zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULE_OF]
