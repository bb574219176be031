"""What torch makes of an equal graph, once: tests export and edit the same few networks over and over.

Both results depend on what is given alone. The export includes our tables of translations and what dodges the
exporter's defects: a test of those converts a graph that no other test does.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import onnx_ir
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from nncompress.export.write.onnx_exporter import input_names
from nncompress.ir import Model
from nncompress.ir.graph.form import form_of
from nncompress.ir.graph.normal_form.normalize import remove_dead_code

MOST = 1 << 20  # bytes of weights; larger networks are not kept


def exported_once(convert: Callable[..., ONNXProgram]) -> Callable[..., ONNXProgram]:
    """`convert` of `nncompress.export.write.onnx_exporter`, which gives a copy of what it gave before."""
    kept: dict[bytes, ONNXProgram] = {}

    @wraps(convert)
    def converted(model: Model, program: ExportedProgram, *, lookups: bool) -> ONNXProgram:
        tensors = {**program.state_dict, **program.constants}
        if not _kept(tensors):
            return convert(model, program, lookups=lookups)
        key = _key(tensors, str(program), input_names(model), model.outputs, lookups)
        if key not in kept:
            kept[key] = convert(model, program, lookups=lookups)
            for value in kept[key].model.graph.initializers.values():  # the model's own until now
                given = value.const_value
                assert given is not None
                value.const_value = onnx_ir.Tensor(given.numpy().copy(), dtype=given.dtype, name=given.name)
        once = copy.copy(kept[key])
        once.model = kept[key].model.clone()
        return once

    return converted


def refreshed_once(refresh: Callable[[Model], None]) -> Callable[[Model], None]:
    """`Model.refresh`, which takes the graph that it derived from an equal one, with its own tensors."""
    kept: dict[bytes, tuple[fx.GraphModule, dict[int, str]]] = {}

    @wraps(refresh)
    def refreshed(model: Model) -> None:
        remove_dead_code(model.graph_module)
        if model._traced_form is not None and model._traced_form == form_of(model.graph_module):
            return
        own = _tensors(model.graph_module)
        if not _kept(own):
            refresh(model)
            return
        key = _key(
            {name: t for name, t in own.items() if not t.is_floating_point() or t.numel() < 2},
            [(name, type(t), t.shape, t.stride(), t.dtype, t.requires_grad) for name, t in own.items()],
            [next(n for n, other in own.items() if other is t) for t in own.values()],
            [(node.name, node.target) for node in model.graph.nodes],
            model.graph.python_code("self").src,
            (model.inputs, model.outputs, model.dynamic, model.sizes),
        )
        if key in kept:
            graph_module, names = kept[key]
            memo: dict[int, Any] = {at: own[name] for at, name in names.items()}
            model.graph_module = copy.deepcopy(graph_module, memo)
            model._traced_form = form_of(model.graph_module)
            return
        refresh(model)
        names = {id(t): name for name, t in own.items()}
        made = _tensors(model.graph_module)
        if all(id(t) in names for t in made.values()):  # else it computed some
            # A copy, whose tensors have other values by the time it is asked for.
            copied = copy.deepcopy(model.graph_module)
            again = _tensors(copied)
            kept[key] = copied, {id(again[name]): names[id(t)] for name, t in made.items()}

    return refreshed


def _tensors(module: fx.GraphModule) -> dict[str, Tensor]:
    """Parameters and buffers by every name, and what else the graph reads."""
    found = dict(module.named_parameters(remove_duplicate=False))
    found |= module.named_buffers(remove_duplicate=False)
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in found:
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            found[str(node.target)] = value
    return found


def _kept(tensors: Mapping[str, Any]) -> bool:
    return (
        all(isinstance(value, Tensor) and not value.is_meta for value in tensors.values())
        and sum(value.numel() * value.element_size() for value in tensors.values()) <= MOST
    )


def _key(tensors: Mapping[str, Tensor], *facts: Any) -> bytes:
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in tensors.items():
        digest.update(repr((name, value.dtype, value.shape, value.stride())).encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
