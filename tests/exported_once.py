"""torch's ONNX export of one program, once: tests write the same few networks over and over.

What it makes of a program depends on the program alone; what we do before and after runs every time.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from nncompress.export.write.onnx_exporter import input_names
from nncompress.ir import Model

MOST = 1 << 20  # bytes of weights; larger programs are not kept


def exported_once(convert: Callable[..., ONNXProgram]) -> Callable[..., ONNXProgram]:
    """`convert` of `nncompress.export.write.onnx_exporter`, which gives a copy of what it gave before."""
    kept: dict[bytes, ONNXProgram] = {}

    @wraps(convert)
    def converted(model: Model, program: ExportedProgram, *, optimize: bool) -> ONNXProgram:
        key = _key(program, input_names(model), model.outputs, optimize)
        if key is None:
            return convert(model, program, optimize=optimize)
        if key not in kept:
            kept[key] = convert(model, program, optimize=optimize)
        once = copy.copy(kept[key])
        once.model = kept[key].model.clone()
        return once

    return converted


def _key(program: ExportedProgram, *settings: Any) -> bytes | None:
    """Of graph, shapes, names and values; None: it is not kept."""
    tensors = {**program.state_dict, **program.constants}
    if not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        return None
    if sum(value.numel() * value.element_size() for value in tensors.values()) > MOST:
        return None
    digest = hashlib.sha256(repr((str(program), settings)).encode())
    for name, value in tensors.items():
        digest.update(repr((name, value.dtype, value.shape, value.stride())).encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
