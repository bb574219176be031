"""`.pt2`: the native artifact. Graph and weights by `torch.export.save`, the rest as `nncompress.json`."""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import fx

from nncompress.errors import UnsupportedError
from nncompress.exporting.check.read_back import read_back_pt2
from nncompress.exporting.deflated_zip import deflate_members
from nncompress.exporting.report import ExportReport
from nncompress.exporting.storage import Storage
from nncompress.files.atomic import replacing
from nncompress.files.interrupts import held_back
from nncompress.ir import Model
from nncompress.ir.formats.lookup import pack
from nncompress.ir.formats.samples import to_text
from nncompress.ir.graph.places import place
from nncompress.loading.json_schema import Rejected
from nncompress.loading.pt2.operators import operator_name
from nncompress.loading.pt2.schema import is_parameter_name

SCHEMA = 1
PER_OP = {"packed": 900, "entropy": 100}  # bytes of an op in the graph's JSON, about
RECORD = "nncompress.json"
SAMPLES = "nncompress.samples"


def write_pt2(
    model: Model, path: str | Path, *, protect: Iterable[str | Path] = (), storage: Storage = "packed"
) -> ExportReport:
    """Save the model so that it loads as it is: names, dynamic dims, history, metadata.

    Tensors of few values or many zeros are stored packed (`nncompress.ir.formats.lookup`); with
    `storage="entropy"` every member of the archive is deflated, too. No inputs of the tracing are stored; the
    record says what fits, and samples that the model keeps are a member of their own. The file is read back
    and compared before it is kept.

    Raises:
        UnsupportedError: the graph does not trace, or holds an op or a name that no file may hold.
        VerificationError: what was written does not load as this model.
        OutputError: the file cannot be written.
    """
    start = time.perf_counter()
    _refuse_names(model)
    packed = model if storage == "plain" else pack(model, PER_OP[storage])
    program = packed.exported_program()
    _refuse_unreadable(program.graph)
    program._example_inputs = None  # loading them means unpickling
    for node in program.graph.nodes:  # where a node came from: paths of this machine, longer at every tracing
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    with replacing(path, protect) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with held_back(), temporary.open("wb") as file:
            sink = Sink(file)
            extra = {RECORD: json.dumps(record(model))}
            if text := to_text(model.inputs):
                extra[SAMPLES] = text
            torch.export.save(program, cast(IO[bytes], sink), extra_files=extra)
            sink.close()
        if storage == "entropy":
            stored = temporary.rename(temporary.with_name("stored"))  # no longer a name than the target's
            deflate_members(stored, temporary)
            stored.unlink()
        unlike = read_back_pt2(model, temporary)
    return ExportReport(
        Path(path), Path(path).stat().st_size, time.perf_counter() - start, not_compared=unlike
    )


def _refuse_names(model: Model) -> None:
    """Names of tensors that the reader admits in no file, because torch would find something else there.

    Raises:
        UnsupportedError: naming one.
    """
    network = model.graph_module
    for name, _ in (*network.named_parameters(), *network.named_buffers()):
        if not is_parameter_name(name):
            raise UnsupportedError(
                ".pt2 files may not hold a tensor of this name",
                got=name[:200],
                expected="no part __so__, as Python names its own attributes, and fewer than 1000 characters",
                remedy="call the layer otherwise, or write an .onnx",
            )


def _refuse_unreadable(graph: fx.Graph) -> None:
    """Ops that the reader admits in no file, because they might come from anyone.

    Raises:
        UnsupportedError: naming one, and the layer.
    """
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            try:
                operator_name(f"torch.ops.{node.target}")
            except Rejected as error:
                raise UnsupportedError(
                    f".pt2 files may not hold this op: {place(node)}",
                    got=str(node.target),
                    remedy="write it in forward() with usual tensor operations, or write an .onnx",
                ) from error


class Sink(io.RawIOBase):
    """A file whose write errors surface on `close`: torch's writer would abort the process on one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def close(self) -> None:
        if self._error is None and not self.closed:
            self._file.flush()
        super().close()
        if self._error is not None:
            raise self._error


def record(model: Model) -> dict[str, Any]:
    """What `torch.export` does not keep: the content of `nncompress.json`."""
    return {
        "schema": SCHEMA,
        "inputs": [spec.to_json() for spec in model.inputs],
        "outputs": list(model.outputs),
        "dynamic": {name: list(bounds) for name, bounds in model.dynamic.items()},
        "history": model.history,
        "metadata": model.metadata,
    }
