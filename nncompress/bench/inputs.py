"""Inputs to time artifacts on: the same numbers for every arm, in the dtypes each of them takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nncompress.errors import UsageError
from nncompress.ir import InputSpec
from nncompress.runtimes import Runner
from nncompress.runtimes.base import Array, check_inputs

Inputs = tuple[np.ndarray, ...]

OTHER_DYNAMIC_SIZE = 16  # of dynamic dims that are not the batch


def random_inputs(specs: Sequence[InputSpec], batch: int, seed: int) -> Inputs:
    """Standard normal floats, integers within each input's range; a dynamic first dim is the batch."""
    generator = np.random.default_rng(seed)
    inputs = []
    for spec in specs:
        shape = tuple(
            size if isinstance(size, int) else batch if axis == 0 or size == "batch" else OTHER_DYNAMIC_SIZE
            for axis, size in enumerate(spec.shape)
        )
        if spec.dtype.startswith(("float", "bfloat")):
            inputs.append(generator.standard_normal(shape).astype(np.float32))
        elif spec.dtype == "bool":
            inputs.append(np.ones(shape, bool))
        else:
            inputs.append(generator.integers(spec.low, spec.high, shape).astype(spec.dtype))
    return tuple(inputs)


def inputs_for(runner: Runner, inputs: Inputs, name: str) -> tuple[Array, ...]:
    """The inputs in the dtypes that the runner takes.

    Raises:
        UsageError: the artifact takes another number of inputs, or another fixed batch.
        DataError: it takes other shapes.
    """
    if len(runner.inputs) != len(inputs):
        raise UsageError(
            f"{name} takes other inputs than the first artifact",
            got=", ".join(map(str, runner.inputs)),
            expected=f"{len(inputs)} inputs",
        )
    for spec, array in zip(runner.inputs, inputs):
        fixed = spec.shape[0] if spec.shape else None
        if isinstance(fixed, int) and array.ndim and array.shape[0] != fixed:
            raise UsageError(
                f"{name} takes batches of {fixed} only",
                got=f"a batch of {array.shape[0]}",
                remedy=f"--batch {fixed}, or export it with a dynamic batch",
            )
    cast = tuple(_cast(array, spec.dtype) for spec, array in zip(runner.inputs, inputs))
    check_inputs(runner.inputs, cast, name)
    return cast


def _cast(array: np.ndarray, dtype: str) -> Array:
    if dtype == "bfloat16":  # numpy has none
        return torch.from_numpy(array).to(torch.bfloat16)
    return array.astype(dtype, copy=False)
