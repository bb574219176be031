"""nncompress: make a trained PyTorch model smaller and faster, and know that it is.

    import nncompress

    model = nncompress.load("model.pt2")
    model = nncompress.compress(model, [nncompress.passes.Prune(std=0.5)], data="val.npz")
    nncompress.save(model, "smaller.onnx")

Importing this package does not import torch; the first attribute used does.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_API = ("as_passes", "compress", "dataset", "load", "save")


def __getattr__(name: str) -> object:
    if name in _API:
        from nncompress import api

        return getattr(api, name)
    if name == "passes":
        return import_module("nncompress.passes")
    raise AttributeError(f"module 'nncompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_API, "passes"]
