"""nncompress: make a trained PyTorch model smaller and faster, and know that it is.

    import nncompress

    model = nncompress.load("model.pt2")  # or compress your nn.Module as it is
    model = nncompress.compress(model, [nncompress.passes.Prune(std=0.5)], data="val.npz")
    nncompress.export(model, "smaller.onnx")
    module = model.to_module()  # an nn.Module for a training loop of your own

| function    | takes                                           | gives                              |
|-------------|-------------------------------------------------|------------------------------------|
| `load`      | a file, or an `nn.Module`                       | a `Model`                          |
| `compress`  | a `Model` or module, passes, data               | a smaller `Model`                  |
| `inspect`   | a `Model` or module                             | costs per layer                    |
| `evaluate`  | a `Model`, module or file, and data with labels | how good it is                     |
| `bench`     | several of these, by name                       | how fast each is, with intervals   |
| `export`    | a `Model` and a path                            | a file, verified                   |
| `dataset`   | what `data` is, and a `Model`                   | its samples, as the model takes them |

Importing this package does not import torch; the first attribute used does.
"""

from __future__ import annotations

from nncompress.version import __version__ as __version__

TYPE_CHECKING = False  # as `typing` has it, which would be imported for this alone
if TYPE_CHECKING:
    from nncompress.api import Model, as_passes, bench, compress, dataset, evaluate, export, inspect, load

__all__ = [
    "Model",
    "as_passes",
    "bench",
    "compress",
    "dataset",
    "evaluate",
    "export",
    "inspect",
    "load",
    "passes",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "passes":
        return import_module("nncompress.passes")
    if name in __all__:
        return getattr(import_module("nncompress.api"), name)
    raise AttributeError(f"module 'nncompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
