"""Detection heads, which decode boxes: `quantize` leaves them in float unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from nncompress.ir import Model

# Where heads are defined (Ultralytics; the repository of YOLOv5), and what all of them inherit from.
PACKAGES = ("ultralytics", "models")
HEADS = ("Detect", "RTDETRDecoder")


def remember_head(model: Model, module: nn.Module, notice: Callable[[str], None]) -> None:
    """Patterns of the names of layers in heads, into the metadata of the `model` traced from `module`."""
    found: dict[str, str] = {}
    for name, each in module.named_modules():
        if _is_head(each) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = type(each).__name__
    if not found:
        return
    model.metadata["detection_head"] = [f"{name}.*" for name in found]
    named = ", ".join(f"{name} ({kind})" for name, kind in found.items())
    notice(f"{named} decodes boxes: quantize leaves its layers in float (--include-head rounds them, too)")


def _is_head(module: nn.Module) -> bool:
    return any(
        each.__name__ in HEADS and each.__module__.partition(".")[0] in PACKAGES
        for each in type(module).__mro__
    )
