"""Is what was read what ONNX Runtime computes? At the traced sizes, and at others where they are free."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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
from nncompress.analysis.distance.rounding import Rounding
from nncompress.errors import DataError, NNCompressError, UnsupportedError, VerificationError
from nncompress.ir import Model
from nncompress.ir.graph.inputs import BATCH, BATCH_NAME, derived_sizes
from nncompress.ir.graph.state import as_writes, changed_tensors
from nncompress.loading.onnx.sizes import Input
from nncompress.runtimes.free_sizes import other_sizes
from nncompress.runtimes.named_dims import usual_batch

Run = Callable[..., Sequence[np.ndarray]]
CALLS = 3  # in a row, of a model with a state


class Agreement(NamedTuple):
    """The largest relative error, and what was told of outputs that rounding takes far apart ("": none)."""

    error: float
    rounding: str = ""


def compare(
    model: Model,
    run: Run,
    runtime: str,
    inputs: list[Input],
    sizes: dict[str, int],
    path: Path,
    proof: Callable[[], str] | None = None,
) -> Agreement | None:
    """How far the model is from the runtime, at `sizes` and at another one of every free dim.

    Args:
        run: the file's outputs; a `DataError` where it does not run on inputs of these sizes.
        proof: of a quantized file: see `Rounding`.

    Returns:
        None where the model agrees at `sizes` and not at others: its graph has fixed one that it calls free.

    Raises:
        VerificationError: it differs at `sizes`.
        UnsupportedError: what was read does not run in torch.
    """
    traced = _traced_sizes(model, inputs, sizes)
    precision = precision_of(model)
    quantized = precision in ("int8", "int4")
    rounding = Rounding(model, as_written=True, proof=proof) if quantized else None
    bounds = [TOLERANCE[precision]] * len(model.outputs)

    def error_at(trial: Mapping[str, int], seed: int, *, amplified: bool) -> float:
        arrays = _drawn(model, trial, seed)
        pairs = _outputs(model, run, arrays)
        what = f"{path}: what was read differs from {runtime}"
        return _check(what, model, arrays, pairs, bounds, rounding, amplified=amplified)

    worst = error_at(traced, seed=0, amplified=True)
    follow = derived_sizes(model.graph_module, model.inputs, traced).keys()
    limits = {dim: model.dynamic.get(dim, (1, None)) for dim in traced}
    left = traced.keys() - follow
    # a first dim that is called otherwise may be a length, of which one more tells too little; not of images
    named = usual_batch([model.metadata.get(BATCH_NAME, BATCH)]) is not None
    images = any(spec.shape[:1] == (BATCH,) and len(spec.shape) > 3 for spec in model.inputs)
    batch = BATCH if named or images else None
    for trial in other_sizes(traced, frozenset(left), batch):
        changed = {dim for dim in left if trial[dim] != traced[dim]}
        trial |= derived_sizes(model.graph_module, model.inputs, trial)
        if not changed or any(
            not low <= trial[dim] <= (high or math.inf) for dim, (low, high) in limits.items()
        ):
            continue  # the graph does not claim to run at these
        try:
            worst = max(worst, error_at(trial, seed=1, amplified=False))
        except DataError:  # the file does not run at these
            continue
        except Exception:  # the graph that was read does not, whatever torch raises, or it differs there
            return None
        left -= changed
    return Agreement(worst, "" if rounding is None else rounding.told)


def _traced_sizes(model: Model, inputs: list[Input], sizes: Mapping[str, int]) -> dict[str, int]:
    """The model's free dims as they were traced."""
    return {
        ours: sizes[theirs]
        for spec, each in zip(model.inputs, inputs)
        for ours, theirs in zip(spec.shape, each.shape)
        if isinstance(ours, str) and isinstance(theirs, str)
    }


def compare_calls(
    model: Model,
    run: Run,
    runtime: str,
    inputs: list[Input],
    sizes: dict[str, int],
    path: Path,
    proof: Callable[[], str] | None = None,
) -> None:
    """Several calls in a row, each with the state that the last one left, the first with the file's own.

    Args:
        run: the file's outputs, of a call after the last one.
        proof: see `compare`.

    Raises:
        VerificationError: a call differs.
        UnsupportedError: what was read does not run in torch.
    """
    precision = precision_of(model)
    calls = model.copy()
    as_writes(calls.graph)
    calls.graph_module.recompile()
    for call in range(CALLS):
        before = model.copy()
        for name in changed_tensors(model.graph):
            before.tensor(name).copy_(calls.tensor(name))
        quantized = precision in ("int8", "int4")
        rounding = Rounding(before, as_written=True, proof=proof) if quantized else None
        arrays = _drawn(model, _traced_sizes(model, inputs, sizes), call)
        what = f"{path}: what was read differs from {runtime} in call {call + 1}"
        bounds = [TOLERANCE[precision]] * len(model.outputs)
        _check(what, before, arrays, _outputs(calls, run, arrays), bounds, rounding, amplified=True)


def _check(
    what: str,
    model: Model,
    arrays: tuple[Tensor, ...],
    pairs: Sequence[tuple[Tensor, Tensor]],
    bounds: list[float],
    rounding: Rounding | None,
    *,
    amplified: bool,
) -> float:
    """The largest relative error of the outputs, each the model's and the runtime's.

    Args:
        what: is wrong where one is beyond its bound.
        bounds: of each; larger afterwards where the model amplifies rounding, with `amplified`.

    Raises:
        VerificationError: one is beyond its bound, and rounding does not explain it.
    """
    for at, (pair, resolution) in enumerate(zip(pairs, resolutions(model), strict=True)):
        beyond_kernels = _relative_error(*pair, resolution)
        if amplified and bounds[at] < beyond_kernels < math.inf:
            bounds[at] *= amplification(model, arrays, at)
        if beyond_kernels <= bounds[at]:
            continue
        refused = VerificationError(
            f"{what} on output {model.outputs[at]!r}",
            got=f"relative error {beyond_kernels:.2g}"
            if beyond_kernels < math.inf
            else "another shape, or other infinities",
            expected=f"at most {bounds[at]:.2g} in {precision_of(model)}",
            remedy="this is a defect of the reader; bench and eval run the file as it is",
        )
        if rounding is None:
            raise refused
        rounding.explains(refused, [arrays], at, *pair)
    return max((_relative_error(*pair) for pair in pairs), default=0.0)


def _outputs(model: Model, run: Run, arrays: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each of the model's, and the runtime's."""
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
    return [(a.detach(), torch.from_numpy(b)) for a, b in zip(got, expected, strict=True)]


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
