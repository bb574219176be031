"""What every runtime offers: one loaded artifact that can be run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.dtypes import dtype_name
from nncompress.errors import DataError
from nncompress.files.bounded_text import Unreadable, parse_json
from nncompress.ir import InputSpec
from nncompress.ir.graph.inputs import check_sizes, least_batch_of
from nncompress.memory import bounded_memory

Array = np.ndarray | Tensor
Call = Callable[[], Sequence[np.ndarray]]


def input_array(value: Array) -> np.ndarray:
    """Contiguous, for a runtime that takes numpy's."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    return np.asarray(array, order="C")  # ascontiguousarray makes [1] of a single number


def output_array(output: Tensor) -> np.ndarray:
    """numpy has no bfloat16: float32 holds it exactly."""
    return (output.float() if output.dtype == torch.bfloat16 else output).numpy(force=True)


class Runner(ABC):
    """An artifact loaded into its runtime.

    Attributes:
        name: runtime, version and device: "ONNX Runtime 1.31.1 CPU".
        runtime: a key of `nncompress.runtimes.RUNTIMES`, "" where it runs no files.
        device: "cpu", "mobile" or "cuda".
        metadata: properties of the file; anyone may have written them.
        inputs: what it takes.
        outputs: a name per output.
        threads: how many threads one run may use.
        file_size: bytes on disk, with the files it refers to; None for a model that is in memory only.
        sizes: of dynamic dims by name, what to run it at where neither data nor batch say it.
        notes: what a reader of its timings must know: ops that run elsewhere, kernels that could not be used.
    """

    name: str
    runtime: str = ""
    device: str = "cpu"
    metadata: Mapping[str, str] = MappingProxyType({})
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    threads: int
    file_size: int | None
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = MappingProxyType({})
    _reuses_outputs = False  # the next call overwrites what this one returned

    def remembered(self) -> dict[str, Any]:
        """The metadata of the model that the file was exported from; empty for a file from elsewhere."""
        try:
            stored = parse_json(self.metadata.get("nncompress.metadata", "{}"))
        except Unreadable:
            return {}
        return stored if isinstance(stored, dict) else {}

    def remembered_normalization(self) -> str | None:
        """How its images are normalised, as --normalize takes it; None where the file does not say."""
        said = self.remembered().get("normalize")
        return said if isinstance(said, str) else None

    def remembered_answer(self) -> int | None:
        """Which of its outputs labels fit; None where the file does not say."""
        said = self.remembered().get("answer")
        return said if type(said) is int and 0 <= said < len(self.outputs) else None

    @cached_property
    def least_batch(self) -> int:
        """The fewest samples at a time of which it makes what the model's source does."""
        return least_batch_of(self.remembered())

    def complete(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """All that its file takes, of what a run is given; more where some inputs are constants."""
        return tuple(inputs)

    @abstractmethod
    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        """A call that runs once on inputs that were checked."""

    def bind(self, *inputs: Array) -> Call:
        """Prepare the inputs once, so that the returned call is the runtime's own work and nothing else.

        Raises:
            DataError: number, dtype or shape of the inputs do not fit.
            UsageError: they are fewer samples than the model takes at a time.
        """
        check_inputs(self.inputs, inputs, self.name)
        check_sizes(self.inputs, inputs, least=self.least_batch)
        return self._bind(inputs)

    def run(self, *inputs: Array) -> tuple[np.ndarray, ...]:
        """Run once, a file in the memory that its size explains.

        Raises:
            DataError: number, dtype or shape of the inputs do not fit.
            ModelFileError: it asks for more memory than its size and the inputs' explain.
        """
        call = self.bind(*inputs)
        given = sum(value.nbytes for value in inputs)
        what = f"the model in {self.name}"
        with nullcontext() if self.file_size is None else bounded_memory(what, self.file_size + given):
            return tuple((np.array if self._reuses_outputs else np.asarray)(output) for output in call())


def check_inputs(specs: Sequence[InputSpec], inputs: Sequence[Array], where: str) -> None:
    """Refuse inputs that are not what the specs say; equal names of dynamic dims are equal sizes.

    Raises:
        DataError: naming the input.
    """
    if len(inputs) != len(specs):
        raise DataError(
            f"{where}: wrong number of inputs",
            got=str(len(inputs)),
            expected=f"{len(specs)}: {', '.join(map(str, specs))}",
        )
    sizes: dict[str, int] = {}
    for spec, value in zip(specs, inputs):
        dtype = dtype_name(value.dtype)
        fits = dtype == spec.dtype and value.ndim == len(spec.shape)
        for size, wanted in zip(value.shape, spec.shape):
            fits &= size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
        if not fits:
            raise DataError(
                f"{where}: input {spec.name} does not fit",
                got=f"{dtype}{list(value.shape)}",
                expected=str(spec),
            )
