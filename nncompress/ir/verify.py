"""Is a model well formed, and how far is it from another?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nncompress.errors import VerificationError
from nncompress.ir.model import Model


@dataclass(frozen=True)
class Drift:
    """Distance of one output from a reference, over the same inputs.

    Attributes:
        output: its name.
        relative: ‖a − b‖ / ‖b‖ (Frobenius), 0 for equal outputs.
        largest: the largest absolute difference.
    """

    output: str
    relative: float
    largest: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def outputs_checked(model: Model, inputs: Sequence[Tensor], what: str) -> tuple[Tensor, ...]:
    """Run the model and refuse a result that no user could want.

    Args:
        what: who made this model, for the message ("prune").

    Raises:
        VerificationError: the graph does not lint or run, or gives NaN or infinite values.
    """
    try:
        model.graph.lint()
        with torch.no_grad():
            outputs = model.outputs_of(*inputs)
    except Exception as error:  # whatever an inconsistent graph raises
        raise VerificationError(
            f"{what}: the model no longer runs", got=f"{type(error).__name__}: {error}"
        ) from error
    for name, tensor in zip(model.outputs, outputs):
        if not tensor.isfinite().all():
            broken = not_finite(model)
            raise VerificationError(
                f"{what}: output {name!r} has NaN or infinite values",
                got=f"{broken} has some too"
                if broken
                else "its weights are finite: the activations overflow",
            )
    return outputs


def not_finite(model: Model) -> str | None:
    """The name of a weight or buffer with NaN or infinite values, if there is one.

    A buffer may hold -inf on purpose (a mask added before a softmax), so only NaN counts there.
    """
    parameters = {name for name, _ in model.graph_module.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict().items():
        bad = tensor.isnan() if name not in parameters else ~tensor.isfinite()
        if bad.any():
            return name
    return None


def in_double(tensor: Tensor) -> Tensor:
    """The same values in twice the precision; complex ones stay complex."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def same_structure(now: Sequence[Tensor], before: Sequence[Tensor], what: str) -> None:
    """Refuse outputs that differ in number, shape or dtype.

    Raises:
        VerificationError: they do.
    """
    got, expected = ([f"{t.dtype}{tuple(t.shape)}" for t in each] for each in (now, before))
    if got != expected:
        raise VerificationError(
            f"{what}: the outputs changed their form", got=str(got), expected=str(expected)
        )


def drift(model: Model, now: Sequence[Tensor], before: Sequence[Tensor]) -> list[Drift]:
    """Distance of every output from the reference `before`."""
    rows = []
    for name, a, b in zip(model.outputs, now, before):
        a, b = in_double(a), in_double(b)
        norm = float(b.norm()) or 1.0
        largest = float((a - b).abs().max()) if a.numel() else 0.0
        rows.append(Drift(name, float((a - b).norm()) / norm, largest))
    return rows
