"""Does an ONNX file compute what the graph computes?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.errors import UnsupportedError, VerificationError
from nncompress.ir import Model
from nncompress.ir.normalize import op_name

# Allowed ‖difference‖₂ / ‖output‖₂. In float32 both runtimes add in different order: 1e-6 per layer is usual,
# a wrong op is off by 0.1 or more. In half precision, ONNX Runtime computes in float32 between casts while
# torch rounds after every op. In int8, an activation that lies on a rounding boundary falls to either side,
# and what follows differs by a whole step.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "int8": 2e-1}
FLIPPED_INTEGERS = 0.02  # share of integer outputs (arg-max, comparisons) that may differ at near ties


@dataclass(frozen=True)
class Comparison:
    """What comparing found; fields as in `ExportReport`."""

    max_abs_diff: float
    relative_error: float
    runtime: str
    batches: tuple[int, ...]


def compare(model: Model, path: Path, batches: tuple[int, ...] = (1, 3)) -> Comparison:
    """Run the file and the graph on the same random inputs, at two batch sizes where the batch is dynamic.

    Raises:
        UnsupportedError: ONNX Runtime cannot load the file; the message names the op.
        VerificationError: the outputs differ by more than the tolerance for the model's precision.
    """
    session = open_session(path)
    if "batch" not in model.dynamic:
        batches = batches[:1]
    low, high = model.dynamic.get("batch", (1, None))
    batches = tuple(sorted({min(max(b, low), high or b) for b in batches}))
    precision = precision_of(model)
    worst_diff = worst_relative = 0.0
    for batch in batches:
        inputs = model.example_inputs(batch=batch, seed=batch)
        with torch.no_grad():
            ours = model.outputs_of(*inputs)
        theirs = run(session, inputs)
        for name, expected, got in zip(model.outputs, ours, theirs, strict=True):
            difference, relative = _distance(name, expected.detach().cpu(), got, precision, batch)
            worst_diff, worst_relative = max(worst_diff, difference), max(worst_relative, relative)
    import onnxruntime

    return Comparison(worst_diff, worst_relative, f"onnxruntime {onnxruntime.__version__}", batches)


def precision_of(model: Model) -> str:
    """The coarsest arithmetic in the graph: a key of `TOLERANCE`."""
    if any(op_name(node).startswith("quantize_") for node in model.graph.nodes):
        return "int8"
    dtypes = {t.dtype for t in model.graph_module.state_dict().values()}
    dtypes |= {spec.torch_dtype() for spec in model.inputs}
    return "float16" if torch.float16 in dtypes else "float32"


def open_session(path: Path, save_to: Path | None = None) -> Any:
    """An ONNX Runtime session on the CPU, silent, all of its optimisations on.

    Args:
        save_to: write the graph after optimisation there (before the layout of float kernels is chosen).

    Raises:
        UnsupportedError: it has no implementation of an op in the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exception classes share no base but Exception
        text = str(error)
        op = re.search(r"implementation for (\w+)\(", text) or re.search(r"Op \((\w+)\)", text)
        raise UnsupportedError(
            f"ONNX Runtime on this machine cannot run the op {op.group(1)} of this model"
            if op
            else "ONNX Runtime cannot load the exported model",
            got=text.splitlines()[0][:300],
            remedy="keep it as .pt2, or replace the op in the model",
        ) from error


def run(session: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs for positional inputs.

    Raises:
        UnsupportedError: a kernel of the runtime refuses what it is given.
    """
    wanted = [value.name for value in session.get_inputs()]
    arrays = {name: tensor.contiguous().numpy() for name, tensor in zip(wanted, inputs, strict=True)}
    try:
        results = session.run(None, arrays)
    except Exception as error:  # the runtime's own exception classes share no base but Exception
        raise UnsupportedError(
            "ONNX Runtime loads the exported model and then cannot run it",
            got=str(error).splitlines()[0][:300],
            remedy="keep it as .pt2",
        ) from error
    return [torch.from_numpy(np.array(array)) for array in results]


def _distance(name: str, expected: Tensor, got: Tensor, precision: str, batch: int) -> tuple[float, float]:
    where = f"ONNX Runtime disagrees with the graph on output {name!r} at batch {batch}"
    if expected.shape != got.shape:
        raise VerificationError(where, got=f"shape {tuple(got.shape)}", expected=f"{tuple(expected.shape)}")
    if not expected.dtype.is_floating_point:
        flipped = (expected != got.to(expected.dtype)).double().mean().item() if expected.numel() else 0.0
        if flipped > FLIPPED_INTEGERS:
            raise VerificationError(where, got=f"{flipped:.1%} of its integers differ")
        return 0.0, 0.0
    reference, result = expected.double(), got.double()
    finite = torch.isfinite(reference)
    if not torch.equal(finite, torch.isfinite(result)):
        raise VerificationError(where, got="infinities or NaN in different places")
    reference, result = reference[finite], result[finite]
    if not reference.numel():
        return 0.0, 0.0
    difference = (reference - result).abs().max().item()
    norm = reference.norm().item()
    relative = (reference - result).norm().item() / norm if norm > 0 else (reference - result).norm().item()
    if relative > TOLERANCE[precision]:
        raise VerificationError(
            where,
            got=f"relative error {relative:.2g}, largest difference {difference:.3g}",
            expected=f"relative error at most {TOLERANCE[precision]:g} in {precision}",
            remedy="this is a defect of the export; keep the model as .pt2 and report it",
        )
    return difference, relative
