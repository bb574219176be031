"""Weights alone: a `state_dict` in the safetensors format."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from nncompress.export.atomic import replacing
from nncompress.export.report import ExportReport
from nncompress.ir import Model


def write_safetensors(model: Model, path: str | Path, *, protect: Iterable[str | Path] = ()) -> ExportReport:
    """Write the parameters and buffers under their dotted names; history and metadata go into the header.

    Tied tensors are stored once, under their first name; the header maps the other names to it, as
    `safetensors.torch.save_model` does.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors.torch import save

    start = time.perf_counter()
    names: dict[int, str] = {}
    tied: dict[str, str] = {}
    tensors = {}
    for name, tensor in model.graph_module.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor.detach().contiguous()
        else:
            tied[name] = first
    header = {
        "format": "pt",
        **tied,
        "history": json.dumps(model.history),
        "metadata": json.dumps(model.metadata),
    }
    with replacing(path, protect) as temporary:
        temporary.write_bytes(save(tensors, metadata=header))
    return ExportReport(Path(path), Path(path).stat().st_size, time.perf_counter() - start)
