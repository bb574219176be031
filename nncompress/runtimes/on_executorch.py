"""`.pte` files in ExecuTorch, whose XNNPACK delegate does the heavy work: the mobile runtime, on this CPU."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.dtypes import SCALAR_TYPES
from nncompress.errors import DataError, ModelFileError, UnsupportedError
from nncompress.extras import LACKING, broken, need, version
from nncompress.files.bounded_text import Unreadable, parse_json
from nncompress.ir import InputSpec
from nncompress.runtimes.base import Array, Call, Runner, output_array
from nncompress.runtimes.silence import silent

IDENTIFIER = b"ET12"  # of the flatbuffer's schema, at byte 4
RECORD = "nncompress"  # the method of our files that returns what we know of them, as JSON
DTYPES = dict(enumerate(SCALAR_TYPES))


@cache
def runtime() -> Any:
    """ExecuTorch's runtime and its bindings, imported when first needed: that takes seconds.

    Raises:
        MissingExtraError: the extra is not installed, or broken.
    """
    need("mobile", "ExecuTorch")
    with silent():
        try:
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        except LACKING as error:
            raise broken("mobile", "ExecuTorch", error) from error
        return Runtime.get(), portable_lib


class _Pool:
    """The delegate's one pool of threads, the process's.

    A method keeps a pointer to the pool that it was loaded with, so replacing the pool makes all loaded
    methods invalid; the generation tells which are.
    """

    threads = 0
    generation = 0

    @classmethod
    def use(cls, threads: int) -> int:
        """Let it have this many threads; its generation from now on."""
        if cls.threads != threads:
            with silent():  # it says so
                runtime()[1]._unsafe_reset_threadpool(threads)
            cls.threads = threads
            cls.generation += 1
        return cls.generation


class ExecuTorchRunner(Runner):
    """The `forward` method of a program.

    Args:
        path: the `.pte` file.
        threads: of one run.
    Raises:
        MissingExtraError: ExecuTorch is not installed.
        ModelFileError: not a program, cut off, or of a version that this ExecuTorch does not read.
        UnsupportedError: it calls an operator or a backend that this ExecuTorch lacks.
    """

    runtime, device = "executorch", "mobile"

    def __init__(self, path: Path, threads: int) -> None:
        need("mobile", path.name)
        check_header(path)
        runtime()
        self._path = path
        self.threads = threads
        self.record: dict[str, Any] = {}
        self.record = self._read_record()
        self._load()
        self.name = f"ExecuTorch {version('executorch')} CPU"
        self.inputs, self.outputs = self._interface()
        self.metadata = {"nncompress.metadata": json.dumps(self.record.get("metadata", {}))}
        self.file_size = path.stat().st_size

    def _load(self) -> None:
        """Load `forward` for the pool of threads as it is now."""
        self._generation = _Pool.use(self.threads)
        # The method borrows the program's memory.
        self._program, self._method = self._method_named("forward")
        if self._method is None:
            raise ModelFileError(
                f"{self._path} has no method forward", got=", ".join(self._program.method_names)
            )

    def _read_record(self) -> dict[str, Any]:
        """What `nncompress export` wrote of inputs, dims and history; {} for the files of others."""
        _program, method = self._method_named(RECORD)
        try:
            record = parse_json(method.execute([])[0]) if method is not None else {}
        except (Unreadable, TypeError, IndexError, RuntimeError):
            record = None
        if not isinstance(record, dict):
            raise ModelFileError(f"{self._path} is damaged", got=f"a method {RECORD} that is not a record")
        return record

    def _method_named(self, name: str) -> tuple[Any, Any]:
        """The program, opened anew, and its method, None where there is none of that name."""
        runtime_, bindings = runtime()
        try:
            with silent():
                program = runtime_.load_program(
                    self._path, verification=bindings.Verification.InternalConsistency
                )
                return program, program.load_method(name) if name in program.method_names else None
        except Exception as problem:  # the bindings raise RuntimeError, with a number of their own
            raise _explained(self._path, problem, self.record) from problem

    def _interface(self) -> tuple[tuple[InputSpec, ...], tuple[str, ...]]:
        """As our record says, else as the program does, which does not tell what is dynamic."""
        if "inputs" in self.record:
            try:
                specs = [InputSpec.from_json(s) for s in self.record["inputs"]]
                return tuple(specs), tuple(map(str, self.record["outputs"]))
            except (TypeError, KeyError, ValueError) as problem:
                raise ModelFileError(
                    f"{self._path} is damaged", got=f"a record without {problem}"
                ) from problem
        meta = self._method.metadata
        tensors = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
        specs = [
            InputSpec(f"input_{i}", DTYPES.get(t.dtype(), str(t.dtype())), tuple(t.sizes()))
            for i, t in enumerate(tensors)
        ]
        return tuple(specs), tuple(f"output_{i}" for i in range(meta.num_outputs()))

    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        tensors = [
            (x.detach() if isinstance(x, Tensor) else torch.from_numpy(x)).contiguous() for x in inputs
        ]
        for spec, tensor in zip(self.inputs, tensors):
            for name, size in zip(spec.shape, tensor.shape):
                low, high = self.record.get("dynamic", {}).get(name, (0, None))
                if size < low or (high is not None and size > high):
                    raise DataError(
                        f"{self.name}: the size {size} of {name} is not one the program was made for",
                        expected=f"{low} to {high}: ExecuTorch plans its memory beforehand",
                    )

        def call() -> Sequence[np.ndarray]:
            if _Pool.use(self.threads) != self._generation:
                self._load()
            try:
                return [output_array(output) for output in self._method.execute(tensors)]
            except RuntimeError as problem:
                raise DataError(
                    "ExecuTorch could not run the program on this input", got=str(problem).splitlines()[0]
                ) from problem

        return call


def open_pte(path: Path, threads: int) -> ExecuTorchRunner:
    """See `ExecuTorchRunner`."""
    return ExecuTorchRunner(path, threads)


def check_header(path: Path) -> None:
    """Refuse what is no whole program of this version, before the runtime touches it.

    Raises:
        ModelFileError: saying which of these it is.
    """
    with path.open("rb") as file:
        head = file.read(40)
    size = path.stat().st_size
    found = head[4:8]
    if found[:2] != b"ET" or not found[2:].isdigit():
        raise ModelFileError(
            f"{path} is not an ExecuTorch program",
            got=f"{size} bytes of another kind",
            expected="a .pte file",
        )
    if found != IDENTIFIER:
        raise ModelFileError(
            f"{path} is an ExecuTorch program of another version",
            got=f"format {found.decode()}",
            expected=f"format {IDENTIFIER.decode()}, which ExecuTorch {version('executorch')} reads",
            remedy="export it again with the ExecuTorch that is to run it",
        )
    if len(head) < 40:
        raise ModelFileError(f"{path} was cut off", got=f"{size} bytes", remedy="copy it again")
    if head[8:12] == b"eh00":
        length, program, segments, data = struct.unpack("<IQQQ", head[12:40])
        needed = max(program, segments + (data if length >= 32 else 0))
        if size < needed:
            raise ModelFileError(
                f"{path} was cut off", got=f"{size} bytes", expected=f"{needed}", remedy="copy it again"
            )


def _explained(path: Path, problem: Exception, record: dict[str, Any]) -> Exception:
    message = " ".join(str(problem).split())[:300]
    here = version("executorch")
    by = record.get("executorch")
    if "0x14" in message:  # Error::OperatorMissing
        return UnsupportedError(
            f"{path} calls an operator that ExecuTorch {here} does not have here", got=message
        )
    if "0x20" in message or "0x30" in message or "0x32" in message:  # NotFound, delegate errors
        return ModelFileError(
            f"{path} needs a backend that is not in ExecuTorch {here}, or was made for another version of it",
            got=message + (f"; written with {by}" if by else ""),
            remedy="export it again with the ExecuTorch that is to run it",
        )
    return ModelFileError(
        f"{path} is damaged, or of a version that ExecuTorch {here} does not read",
        got=message + (f"; written with {by}" if by else ""),
        remedy="export it again with the ExecuTorch that is to run it",
    )
