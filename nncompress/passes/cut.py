"""Removing what a plan says: cut, write in what was fitted, prove that nothing else changed, and tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from nncompress.analysis.compensation import Cut, Fitted
from nncompress.analysis.compensation.affine import Affine
from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import (
    Couplings,
    Proof,
    Proven,
    check,
    find_couplings,
    remove_proven,
    remove_units,
)
from nncompress.analysis.couplings.proof import TOLERANCE, Widened, distance
from nncompress.analysis.couplings.value import EXAMPLE_BATCH
from nncompress.analysis.importance.choices import Choice
from nncompress.analysis.observe.residual import Branch, find_branches, names
from nncompress.dtypes import dtype_name
from nncompress.errors import UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.edit.narrow import drop_branch, narrow_reads, narrow_writes
from nncompress.ir.layers.weights import Layer, layers
from nncompress.passes.base import Change

BUDGET_TOLERANCE = 0.02
VERBS = {"group": "nodes left", "reads": "channels read", "writes": "channels written"}


def refuse_16_bits(name: str, model: Model, remedy: str) -> None:
    """Before the pass of this name fits layers of such weights to data.

    Raises:
        UsageError
    """
    for parameter, value in model.graph_module.named_parameters():
        if value.dtype.itemsize == 2:
            raise UsageError(
                f"{name}: fitting layers to data needs more precision than 16 bits",
                got=f"{parameter} is {dtype_name(value.dtype)}",
                expected="float32",
                remedy=remedy,
            )


def cut_of(
    choices: Sequence[Choice], removed: Mapping[str, Sequence[int]], branches: Sequence[Branch] = ()
) -> Cut:
    """What is to be removed, by choice, as what is to be done.

    Args:
        removed: choice -> units.
        branches: left out altogether.
    """

    def of(kind: str) -> dict[str, Sequence[int]]:
        return {
            c.layer.name if c.layer else c.name: removed[c.name]
            for c in choices
            if c.kind == kind and c.name in removed
        }

    return Cut(of("group"), of("reads"), of("writes"), branches)


def proven_cut(couplings: Couplings, cut: Cut) -> tuple[Cut, Proven]:
    """The cut without the groups whose removal cannot be proven, and what is left after removing the rest."""
    proven = remove_proven(couplings, cut.units)
    return replace(cut, units={n: u for n, u in cut.units.items() if n not in proven.refused}), proven


def refusal(name: str, refused: Mapping[str, str], asked: int) -> str:
    """What the user is told of groups whose removal could not be proven; nothing where all was."""
    if not refused:
        return ""
    return (
        f"{name}: {len(refused)} of {asked} groups stay whole, because their removal could not be proven."
        " That is a defect of nncompress: please report the architecture."
    )


def removals(
    choices: Sequence[Choice],
    removed: Mapping[str, Sequence[int]],
    losses: Mapping[str, float],
    proven: Proven | None,
    proof: Proof | None,
) -> list[Change]:
    """A change for each choice of which units go, or were to go.

    Args:
        removed: choice -> units; `losses`: what they cost.
    """
    refused = proven.refused if proven else {}
    numbers = {"proof_error": proof.error, "effect": proof.effect} if proof else {}
    changes = []
    for choice in choices:
        units = removed.get(choice.name, [])
        if choice.name in refused:
            changes.append(Change(choice.name, f"skipped: {refused[choice.name]}", applied=False))
        elif units:
            what = f"{choice.size - len(units)} of {choice.size} {VERBS[choice.kind]}"
            details = {"nodes_before": choice.size, "removed": units, "loss": losses[choice.name], **numbers}
            changes.append(Change(choice.name, what, details))
    return changes


def check_budget(name: str, unit: str, share: float, before: Model, after: Model) -> None:
    """The budget is met, by the exact count of what is left.

    Args:
        unit: "macs" or "parameters".

    Raises:
        VerificationError: it is exceeded by more than 2 %.
    """
    left = getattr(cost(after), unit) / getattr(cost(before), unit)
    if left > share * (1 + BUDGET_TOLERANCE):
        raise VerificationError(
            f"{name}: the budget of {unit} was missed",
            got=f"{left:.4f} left",
            expected=f"{share:g}, within {BUDGET_TOLERANCE:.0%}",
            remedy="this is a defect: please report the model's architecture",
        )


def apply_cut(
    model: Model, cut: Cut, fitted: Fitted, proven: Proven | None, *, verify: bool
) -> tuple[Model, Proof | None]:
    """A smaller model that computes what `model` with the `fitted` weights computes.

    Args:
        proven: the removal of the cut's units, if it has been done with the weights as they were.

    Raises:
        VerificationError: it does not.
    """
    if proven is not None and not fitted.weights and not cut.branches:
        return proven.model, proven.proof
    full = model.copy()
    with torch.no_grad():
        for name, value in fitted.weights.items():
            full.tensor(name).copy_(value)
    pruned = full.copy()
    proof = proven.proof if proven else None
    if cut.units:
        remove_units(pruned, cut.units)
        if verify:
            proof = check(find_couplings(full), cut.units, pruned)
    if cut.reads or cut.writes:
        wide = pruned.copy()
        _narrow(pruned, cut)
        if verify:
            check_same(wide, pruned, "cutting zeros out of residual branches")
    if cut.branches:
        _drop(pruned, model, cut, fitted)
    return pruned, proof


def _narrow(model: Model, cut: Cut) -> None:
    for layer in list(layers(model)):
        if layer.name in cut.writes:
            gone = set(cut.writes[layer.name])
            affine = Affine(model, layer)
            size = layer.weight.value().shape[layer.roles.outputs]
            kept = [c for c in range(size) if c not in gone]
            rest = affine.offset().to(layer.weight.value().dtype)  # their weights are zero
            rest[kept] = 0
            narrow_writes(model, layer, _dim(layer), kept, affine.end, affine.vectors(), rest)
        if layer.name in cut.reads:
            gone = set(cut.reads[layer.name])
            size = layer.weight.value().shape[layer.roles.inputs]
            narrow_reads(model, layer, _dim(layer), [c for c in range(size) if c not in gone])
    model.refresh()


def _dim(layer: Layer) -> int:
    """The channel dim of its activations, counted from the front."""
    return layer.channel_dim % len(layer.node.meta["val"].shape)


def check_same(wide: Model, narrow: Model, what: str, tolerance: float = TOLERANCE) -> None:
    """The second model computes what the first does, both in double precision.

    Args:
        what: it should not have changed.

    Raises:
        VerificationError: it does not.
    """
    inputs = wide.example_inputs(EXAMPLE_BATCH)
    with torch.no_grad():
        error = distance(*(Widened(model.graph_module).run(*inputs) for model in (narrow, wide)))
    if not error <= tolerance:
        raise VerificationError(
            f"{what} changed what the model computes",
            got=f"relative difference {error:.2g}",
            expected=f"at most {tolerance:.2g}",
            remedy="this is a defect: please report the model's architecture",
        )


def _drop(pruned: Model, model: Model, cut: Cut, fitted: Fitted) -> None:
    """Leave branches out; the constants lose the channels that the stream has lost."""
    survivors = find_couplings(model).survivors(cut.units)
    adds = {b.add: n for n, b in enumerate(cut.branches)}
    before = find_branches(model)
    number_of = {name: adds[b.add] for name, b in zip(names(before), before) if b.add in adds}
    now = find_branches(pruned)
    for name, branch in zip(names(now), now):
        if name not in number_of:
            continue
        number = number_of[name]
        constant = fitted.constants[number]
        old = cut.branches[number]
        dim = _dim(old.layers[-1])
        keep = survivors.of(old.add).get(dim)
        if constant is not None and keep is not None:
            constant = constant[torch.from_numpy(keep)]
        drop_branch(pruned, branch.add, branch.shortcut, dim, constant, name)
    pruned.refresh()
