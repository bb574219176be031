"""A loaded `Model` in torch on the CPU, eager."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from nncompress.errors import DataError
from nncompress.ir import Model
from nncompress.runtimes.base import Array, Call, Runner, output_array


class TorchRunner(Runner):
    """The graph as it is, node by node.

    Args:
        model: in evaluation mode.
        threads: set for the whole process when a bound call begins (torch has one thread pool).
    """

    def __init__(self, model: Model, threads: int) -> None:
        self._model = model
        self.name = f"torch {torch.__version__.split('+')[0]} CPU"
        self.inputs, self.sizes = model.inputs, model.sizes
        self.outputs = model.outputs
        self.threads = threads
        self.file_size = None
        self.least_batch = model.least_batch

    def run(self, *inputs: Array) -> tuple[np.ndarray, ...]:
        """Run once; afterwards the process has as many threads as it had."""
        with kept_threads():
            return super().run(*inputs)

    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        tensors = tuple(x if isinstance(x, Tensor) else torch.from_numpy(x) for x in inputs)
        # not `Model.outputs_of`: its checks, done once here, would be timed with every call
        forward, threads = self._model.graph_module, self.threads

        def call() -> Sequence[np.ndarray]:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            try:
                with torch.inference_mode():
                    return tuple(output_array(output) for output in forward(*tensors))
            except (RuntimeError, IndexError, ValueError) as problem:
                raise DataError(
                    "torch could not run the model on this input",
                    got=f"{type(problem).__name__}: {problem}"[:300],
                ) from problem

        return call


@contextmanager
def kept_threads() -> Iterator[None]:
    """Afterwards torch has as many threads as it had: what is trained or fitted later has all of them."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
