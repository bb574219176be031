"""Weights alone: a `state_dict` in the safetensors format."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, frombuffer, nn, uint8

from nncompress.analysis.distance.precision import precision_of
from nncompress.dtypes import dtype_name
from nncompress.exporting.check.read_back import read_back_safetensors
from nncompress.exporting.report import ExportReport
from nncompress.exporting.storage import Storage
from nncompress.files.atomic import replacing
from nncompress.ir import Model
from nncompress.ir.formats.deflate import encode
from nncompress.ir.formats.packed import smallest
from nncompress.version import __version__

_CODES = "its integer weights are read by its graph, which a .pt2 holds, and by no --arch"
OVERHEAD = 512  # bytes that a packed tensor's entries take in the header, about


def write_safetensors(
    model: Model, path: str | Path, *, protect: Iterable[str | Path] = (), storage: Storage = "packed"
) -> ExportReport:
    """Write the parameters and buffers under their dotted names; history and metadata go into the header.

    Tied tensors are stored once, under their first name; the header maps the other names to it, as
    `safetensors.torch.save_model` does. A parameter NAME of few values or many zeros is stored as NAME.codes,
    NAME.codebook and so on (`nncompress.ir.formats.packed`), and the header entry "packed" has its shape; the
    entry "deflated" has dtype and shape of what is entropy-coded. `storage="plain"` is what other tools read.
    The file is read back and compared before it is kept.

    Raises:
        VerificationError: what was written does not load as these tensors.
        OutputError: the file cannot be written.
    """
    start = time.perf_counter()
    names: dict[int, str] = {}
    tied: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in model.graph_module.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if first != name:
            tied[name] = first
            continue
        packable = storage != "plain" and isinstance(tensor, nn.Parameter)
        parts = smallest(tensor, OVERHEAD) if packable else None
        if parts is None:
            tensors[name] = tensor.detach().contiguous()
            continue
        shapes[name] = list(tensor.shape)
        tensors |= {f"{name}.{part}": value.contiguous() for part, value in parts.items()}
    coded = _deflate(tensors) if storage == "entropy" else {}
    header = {
        "format": "pt",
        **tied,
        "history": json.dumps(model.history),
        "metadata": json.dumps(model.metadata),
        "nncompress.version": __version__,
        **({"packed": json.dumps(shapes)} if shapes else {}),
        **({"deflated": json.dumps(coded)} if coded else {}),
    }
    with replacing(path, protect) as temporary:
        write_tensors(tensors, header, temporary)
        read_back_safetensors(model, temporary)
    not_read = "" if precision_of(model) not in ("int8", "int4") else _CODES
    return ExportReport(Path(path), Path(path).stat().st_size, time.perf_counter() - start, not_read=not_read)


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path) -> None:
    """The same bytes for the same tensors: safetensors gives the header's metadata in an order of chance."""
    content = save(dict(tensors), metadata=dict(metadata))
    data = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as safetensors aligns what follows
    with file.open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        sink.write(memoryview(content)[data:])


def _deflate(tensors: dict[str, Tensor]) -> dict[str, list[object]]:
    """Entropy-code in place what becomes smaller; returns name -> [dtype, shape] of each."""
    coded: dict[str, list[object]] = {}
    for name, tensor in tensors.items():
        data = tensor.flatten().view(uint8).numpy().tobytes() if tensor.numel() else b""
        stream = encode(data)
        if len(stream) + OVERHEAD // 4 < len(data):
            coded[name] = [dtype_name(tensor.dtype), list(tensor.shape)]
            tensors[name] = frombuffer(bytearray(stream), dtype=uint8)
    return coded
