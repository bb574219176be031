"""Ops for which torch's ONNX exporter has no translation: known before any work, from its own registry."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from nncompress.exporting.write.exporter_cost import kept
from nncompress.exporting.write.onnx_exporter import quiet, translations
from nncompress.ir import Model


def untranslated(model: Model) -> list[str]:
    """Ops of the model that are neither translated nor decomposed into others. An export may still say them
    in other ops, or compute them, where they make weights only; of others it may still fail.

    Nothing is known of a version of torch whose registry lies elsewhere.
    """
    with quiet(), kept():
        try:
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            known = ONNXRegistry.from_torchlib().is_registered
        except (ImportError, AttributeError):
            return []
    first: dict[Any, fx.Node] = {}
    for node in model.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
            first.setdefault(node.target, node)
    unknown = [target for target in first if not known(target)]
    if not unknown:
        return []
    others = {*translations(), *torch.export.default_decompositions()}
    return [
        str(target)
        for target in unknown
        if not all(part in others or known(part) for part in _parts(first[target]))
    ]


class _Seen(TorchDispatchMode):
    """The ops that composite ones come down to."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.add(func)
        return func(*args, **(kwargs or {}))


def _parts(node: fx.Node) -> set[Any]:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: each.meta.get("val"))
    with _Seen() as seen:
        try:
            node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:  # whatever an operator raises on tensors without values
            return {node.target}
    return seen.ops
