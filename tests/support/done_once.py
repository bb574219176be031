"""What torch makes of an equal graph, once: tests export and edit the same few networks over and over.

All three results depend on what is given alone. The export includes our tables of translations and what
dodges the exporter's defects: a test of those converts a graph that no other test does.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Hashable, Mapping
from functools import wraps
from typing import Any

import onnx_ir
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from nncompress.exporting.write.onnx_exporter import input_names
from nncompress.ir import Model
from nncompress.ir.graph.form import form_of
from nncompress.ir.graph.normal_form.normalize import remove_dead_code

MOST = 1 << 20  # bytes of weights; larger networks are not kept


def exported_once(convert: Callable[..., ONNXProgram]) -> Callable[..., ONNXProgram]:
    """`convert` of `nncompress.exporting.write.onnx_exporter`, which gives a copy of what it gave before."""
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
        if model.has_shapes:
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
            model.traced_form = form_of(model.graph_module)
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


def traced_once(from_module: Callable[..., Model]) -> Callable[..., Model]:
    """`Model.from_module`, which gives a copy of what it made of an equal module and equal inputs.

    Modules are equal whose classes are the same, not only alike, and whose attributes are equal: one with
    others than tensors and plain values is traced each time.
    """
    kept: dict[Any, Model] = {}

    @wraps(from_module)
    def traced(module: nn.Module, example_inputs: tuple[Any, ...], **options: Any) -> Model:
        given = {str(i): value for i, value in enumerate(example_inputs)}
        asked = {name: value for name, value in options.items() if value is not None}
        facts = None if set(asked) - {"dynamic_batch", "sample_dims"} else _facts(module)
        own = list(module.named_parameters(remove_duplicate=False))
        own += module.named_buffers(remove_duplicate=False)
        if facts is None or not _kept({**dict(own), **given}):
            return from_module(module, example_inputs, **options)
        told = _key(
            {**dict(own), **{f"input {name}": value for name, value in given.items()}},
            sorted(asked.items()),
            [next(n for n, other in own if other is t) for _, t in own],
            [(t.requires_grad, type(t)) for t in (*dict(own).values(), *example_inputs)],
            (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        )
        key = facts, told
        if key not in kept:
            before = torch.get_rng_state()
            made = from_module(module, example_inputs, **options)
            if not torch.equal(torch.get_rng_state(), before):
                return made
            kept[key] = made.copy()
            return made
        return kept[key].copy()

    return traced


def _facts(module: nn.Module) -> Hashable | None:
    """Of every module in it the class and what is no tensor; None where some of that is not plain."""
    found: list[Any] = []
    for name, each in module.named_modules(remove_duplicate=False):
        own = {k: v for k, v in vars(each).items() if k not in ("_parameters", "_buffers", "_modules")}
        own |= {f"class {k}": v for k, v in vars(type(each)).items() if isinstance(v, int | float | str)}
        if not all(_is_plain(value) for value in own.values()):
            return None
        found.append((name, type(each), repr(sorted(own.items()))))
    return tuple(found)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str | torch.dtype | torch.Size)


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
        all(
            isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
            for value in tensors.values()
        )
        and sum(value.numel() * value.element_size() for value in tensors.values()) <= MOST
    )


def _key(tensors: Mapping[str, Tensor], *facts: Any) -> bytes:
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in tensors.items():
        digest.update(repr((name, value.dtype, value.shape, value.stride())).encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
