"""A model made float32, and how far that takes its outputs from those that it had."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nncompress.analysis.distance.drift import BOUND, Reference, Samples, amount, beyond_bound
from nncompress.data import Dataset
from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.ir.formats.precision import convert
from nncompress.ir.graph.verify import Drift

SEED = 0  # of the inputs, where there is no data
KEEP = "leave --precision out"


@dataclass(frozen=True)
class Converted:
    """What another precision did.

    Attributes:
        drift: distance of the outputs from those in the precision that the model had.
        samples: on which inputs that was measured.
        warnings: sentences that say what may be wrong with the result.
    """

    drift: list[Drift]
    samples: Samples
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "drift": [row.to_json() for row in self.drift],
            "samples": self.samples.to_json(),
            "warnings": self.warnings,
        }


def made_float32(model: Model, data: Dataset | None) -> tuple[Model, Converted]:
    """A copy that computes in float32, and how far its outputs are from the model's.

    Raises:
        UnsupportedError: a stored value does not fit, or it does not trace in float32.
        VerificationError: the model does not run, or makes infinities in float32 where it made none.
    """
    samples = Samples.draw(model, data, data, SEED)
    if data is not None:
        samples = replace(samples, origin="data")
    narrowed = model.copy()
    convert(narrowed, "float32")
    try:
        reference = Reference(model, samples, "the model as loaded")
        rows = reference.drift(narrowed, "the model in float32", other_floats=True)
    except VerificationError as error:
        remedy = KEEP if data is not None else f"{KEEP}, or give inputs that it is made for: --data"
        raise VerificationError(error.what, got=error.got, remedy=remedy) from error
    moved = amount(rows)
    warnings = []
    if moved > BOUND:
        warnings.append(f"float32: {beyond_bound(moved, reference.samples)} To keep what it did, {KEEP}.")
    return narrowed, Converted(rows, reference.samples, warnings)
