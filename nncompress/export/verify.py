"""Does an exported file compute, in its own runtime, what the graph computes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.ir.normalize import op_name

# Allowed ‖difference‖₂ / ‖output‖₂. In float32 both runtimes add in different order: 1e-6 per layer is usual,
# a wrong op is off by 0.1 or more. In half precision, ONNX Runtime computes in float32 between casts while
# torch rounds after every op. In int8, an activation that lies on a rounding boundary falls to either side,
# and what follows differs by a whole step: 1e-2 on trained ResNets, 4e-2 at most in any network tried.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "int8": 1e-1}
FLIPPED_INTEGERS = 0.02  # share of integer outputs (arg-max, comparisons) that may differ at near ties


@dataclass(frozen=True)
class Comparison:
    """What comparing found; fields as in `ExportReport`."""

    max_abs_diff: float
    relative_error: float
    runtime: str
    batches: tuple[int, ...]


def compare(
    model: Model,
    run: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    runtime: str,
    batches: tuple[int, ...] = (1, 3),
) -> Comparison:
    """Run the file and the graph on the same random inputs, at these batch sizes where the batch is dynamic.

    Args:
        run: the file's outputs for positional inputs.
        runtime: what ran it, for messages.

    Raises:
        VerificationError: the outputs differ by more than the tolerance for the model's precision.
    """
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
        for name, expected, got in zip(model.outputs, ours, run(inputs), strict=True):
            where = f"{runtime} disagrees with the graph on output {name!r} at batch {batch}"
            difference, relative = _distance(where, expected.detach().cpu(), got, precision)
            worst_diff, worst_relative = max(worst_diff, difference), max(worst_relative, relative)
    return Comparison(worst_diff, worst_relative, runtime, batches)


def precision_of(model: Model) -> str:
    """The coarsest arithmetic in the graph: a key of `TOLERANCE`."""
    if any(op_name(node).startswith("quantize_") for node in model.graph.nodes):
        return "int8"
    dtypes = {t.dtype for t in model.graph_module.state_dict().values()}
    dtypes |= {spec.torch_dtype() for spec in model.inputs}
    return "float16" if torch.float16 in dtypes else "float32"


def _distance(where: str, expected: Tensor, got: Tensor, precision: str) -> tuple[float, float]:
    """(largest difference, relative error); refuses what is beyond the tolerance."""
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
