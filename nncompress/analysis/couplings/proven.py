"""Removal that keeps only what can be proven: a group that breaks the model or the proof stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nncompress.analysis.couplings.at_fault import groups_at_fault
from nncompress.analysis.couplings.groups import Couplings, Removal
from nncompress.analysis.couplings.proof import Proof, check
from nncompress.analysis.couplings.removal import remove_units
from nncompress.errors import NNCompressError
from nncompress.ir import Model


@dataclass(frozen=True)
class Proven:
    """The outcome of `remove_proven`.

    Attributes:
        model: the smaller model.
        proof: how far it is from the reference.
        refused: groups left whole, with the reason. Empty unless our analysis has met something new.
    """

    model: Model
    proof: Proof
    refused: dict[str, str]


def remove_proven(couplings: Couplings, removal: Removal) -> Proven:
    """Remove units from a copy of the model and prove it; on failure find the groups at fault and leave them.

    A failure is a defect of the analysis, but a user with an unusual architecture is better served with nine
    groups of ten. One run tells which ops go wrong, and so which groups (`at_fault`); what is not seen there,
    as where only the export fails, is found by halving.
    """
    outcome = _failure(couplings, removal)
    if not isinstance(outcome, str):
        return Proven(*outcome, {})
    refused = groups_at_fault(couplings, removal)
    rest = {name: units for name, units in removal.items() if name not in refused}
    (model, proof), more = without_faults(lambda wanted: _failure(couplings, wanted), rest)
    return Proven(model, proof, refused | more)


Units = Mapping[str, Sequence[int] | NDArray[np.int64]]
T = TypeVar("T")


def without_faults(attempt: Callable[[Units], T | str], units: Units) -> tuple[T, dict[str, str]]:
    """The outcome of `attempt` on as many of the groups as it succeeds with, and why not on the others.

    Args:
        attempt: does it with these units per group on a copy; a str says what went wrong.

    Raises:
        NNCompressError: it fails with no units at all.
    """
    refused: dict[str, str] = {}
    wanted = {name: chosen for name, chosen in units.items() if len(chosen)}
    while True:
        outcome = attempt(wanted)
        if not isinstance(outcome, str):
            return outcome, refused
        if not wanted:
            raise NNCompressError("the model cannot be rebuilt even without a change", got=outcome)
        name, why = _at_fault(attempt, wanted, outcome)
        refused[name] = why
        del wanted[name]


def _failure(couplings: Couplings, removal: Removal) -> tuple[Model, Proof] | str:
    """The pruned model with its proof, or what went wrong."""
    pruned = couplings.model.copy()
    try:
        remove_units(pruned, removal)
        return pruned, check(couplings, removal, pruned)
    except Exception as error:  # whatever an inconsistent graph raises while it is traced and run
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _at_fault(attempt: Callable[[Units], object], units: Units, why: str) -> tuple[str, str]:
    """One group on which the attempt fails: keep the half that fails until one is left.

    Where both halves are fine and only their sum is not, the last group of it is blamed.
    """
    names = list(units)
    while len(names) > 1:
        first, second = names[: len(names) // 2], names[len(names) // 2 :]
        for half in (first, second):
            failure = attempt({name: units[name] for name in half})
            if isinstance(failure, str):
                names, why = half, failure
                break
        else:
            return names[-1], why
    return names[0], why
