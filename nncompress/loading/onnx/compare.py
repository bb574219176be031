"""Is what was read what ONNX Runtime computes? At the traced sizes, and at others where they are free."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.distance.precision import (
    TOLERANCE,
    amplification,
    beyond,
    precision_of,
    resolutions,
)
from nncompress.errors import DataError, NNCompressError, UnsupportedError, VerificationError
from nncompress.ir import Model
from nncompress.ir.graph.inputs import BATCH, derived_sizes
from nncompress.loading.onnx.sizes import Input
from nncompress.runtimes.free_sizes import other_sizes

Run = Callable[..., Sequence[np.ndarray]]


def compare(
    model: Model, run: Run, runtime: str, inputs: list[Input], sizes: dict[str, int], path: Path
) -> float | None:
    """The largest relative error against the runtime, at `sizes` and at another one of every free dim.

    Args:
        run: the file's outputs; a `DataError` where it does not run on inputs of these sizes.

    Returns:
        None where the model agrees at `sizes` and not at others: its graph has fixed one that it calls free.

    Raises:
        VerificationError: it differs at `sizes`.
        UnsupportedError: what was read does not run in torch.
    """
    traced = {
        ours: sizes[theirs]
        for spec, each in zip(model.inputs, inputs)
        for ours, theirs in zip(spec.shape, each.shape)
        if isinstance(ours, str) and isinstance(theirs, str)
    }
    worst, beyond_kernels, output = _error(model, run, traced, seed=0)
    bound = TOLERANCE[precision_of(model)]
    if bound < beyond_kernels < math.inf:
        bound *= amplification(model, _drawn(model, traced, seed=0), output)
    if not beyond_kernels <= bound:
        raise VerificationError(
            f"{path}: what was read differs from {runtime} on output {model.outputs[output]!r}",
            got=f"relative error {worst:.2g}"
            if beyond_kernels < math.inf
            else "another shape, or other infinities",
            expected=f"at most {bound:.2g} in {precision_of(model)}",
            remedy="this is a defect of the reader; bench and eval run the file as it is",
        )
    follow = derived_sizes(model.graph_module, model.inputs, traced).keys()
    bounds = {dim: model.dynamic.get(dim, (1, None)) for dim in traced}
    for trial in other_sizes(traced, traced.keys() - follow, BATCH):
        trial |= derived_sizes(model.graph_module, model.inputs, trial)
        if any(not low <= trial[dim] <= (high or math.inf) for dim, (low, high) in bounds.items()):
            continue  # the graph does not claim to run at these
        try:
            error, beyond_kernels, _ = _error(model, run, trial, seed=1)
        except DataError:  # the file does not run at these
            continue
        except Exception:  # the graph that was read does not, whatever torch raises
            return None
        return max(worst, error) if beyond_kernels <= bound else None
    return worst


def _error(model: Model, run: Run, sizes: Mapping[str, int], seed: int) -> tuple[float, float, int]:
    """The largest relative error; what of it the runtime's kernels do not explain, and the output of that."""
    arrays = _drawn(model, sizes, seed)
    expected = run(*arrays)
    try:
        with torch.no_grad():
            got = model.outputs_of(*(array.clone() for array in arrays))
    except (NNCompressError, MemoryError):
        raise
    except Exception as error:  # whatever torch raises, as of numbers for which it has no kernel
        raise UnsupportedError(
            "what was read does not run in torch",
            got=next(iter(str(error).splitlines()), type(error).__name__)[:300],
            remedy="bench and eval run the file as it is",
        ) from error
    pairs = [(a.detach(), torch.from_numpy(b)) for a, b in zip(got, expected, strict=True)]
    plain = [_relative_error(a, b) for a, b in pairs]
    errors = [
        (_relative_error(*pairs[at], resolution), at) for at, resolution in enumerate(resolutions(model))
    ]
    worst = next(((e, at) for e, at in errors if math.isnan(e)), max(errors, default=(0.0, 0)))
    return max(plain, default=0.0), *worst


def _drawn(model: Model, sizes: Mapping[str, int], seed: int) -> tuple[Tensor, ...]:
    """Random inputs of those sizes; integers within the ranges that the graph takes."""
    return model.example_inputs(sizes.get(BATCH, 1), seed, sizes)


def _relative_error(ours: Tensor, theirs: Tensor, resolution: float = 0.0) -> float:
    """‖difference‖ / ‖theirs‖ where both are finite, beyond the kernels' resolution; of integers, the share
    that differs."""
    if ours.shape != theirs.shape:
        return math.inf
    if not theirs.dtype.is_floating_point:
        return float((ours.to(theirs.dtype) != theirs).double().mean()) if theirs.numel() else 0.0
    a, b = ours.double(), theirs.double()
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()):
        return math.inf
    away, norm = float(beyond((a - b)[finite], resolution).norm()), float(b[finite].norm())
    return away / norm if norm else away
