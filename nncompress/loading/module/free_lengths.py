"""A module traced with the length of its sequences free, beside its batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.export import Dim

from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.graph.inputs import BATCH
from nncompress.ir.graph.tracing import MAX_BATCH, at_least_two, trace
from nncompress.loading.compare import run_source

AXIS = 1  # samples lie along the first


@dataclass(frozen=True)
class Length:
    """Of the second dim of an input: inputs of one name have the same length.

    Attributes:
        longest: that the module takes.
    """

    name: str
    longest: int


def with_free_lengths(
    module: nn.Module,
    inputs: Sequence[Tensor],
    lengths: Sequence[Length | None],
    notice: Callable[[str], None],
) -> Model | None:
    """The module's graph with these lengths free; None where `torch.export` fixes one, which is said.

    Args:
        inputs: samples along the first dim, sequences along the second.
        lengths: of each input; None: it has none that could be free.
    """
    known = {each.name: each.longest for each in lengths if each is not None}
    batched = [at_least_two(x) for x in inputs]
    named = {name: Dim(name, min=1, max=longest) for name, longest in known.items()}
    failure = ""
    inferred = {name: Dim.AUTO(max=longest) for name, longest in known.items()}
    for dims in (named, inferred):  # some lengths are too short for its convolutions
        try:
            program = trace(module, tuple(batched), {}, _shapes(module, lengths, dims))
        except UnsupportedError as error:
            failure = str(error.got)
            continue
        model = _named(Model.from_exported(program, copy_weights=True), lengths, inputs)
        fixed = known.keys() - model.dynamic.keys()
        failure = _failure_of_others(module, batched, lengths)  # traced or not, some run at one length only
        if not fixed and not failure and BATCH in model.dynamic:
            told = ", ".join(f"{name} (up to {model.dynamic[name][1]})" for name in known)
            notice(f"free: batch, {told}")
            return model
        failure = failure or f"the graph fixes {', '.join(sorted(fixed))}"
    sizes = {each.name: x.shape[AXIS] for each, x in zip(lengths, inputs) if each is not None}
    said = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    notice(f"one length only, {said}: the graph cannot leave it free ({failure[:200]})")
    return None


def _failure_of_others(module: nn.Module, inputs: Sequence[Tensor], lengths: Sequence[Length | None]) -> str:
    """Why the module does not run on the first three quarters of its inputs; "" where it does."""
    parts = [
        x if length is None else x.narrow(AXIS, 0, max(1, x.shape[AXIS] * 3 // 4))
        for x, length in zip(inputs, lengths)
    ]
    try:
        run_source(module, parts)
    except Exception as error:  # whatever the user's forward raises
        return next(iter(str(error).splitlines()), type(error).__name__)
    return ""


def _shapes(module: nn.Module, lengths: Sequence[Length | None], dims: Mapping[str, Any]) -> dict[str, Any]:
    batch = Dim(BATCH, min=1, max=MAX_BATCH)
    each = [{0: batch} | ({} if length is None else {AXIS: dims[length.name]}) for length in lengths]
    return dict(inspect.signature(module.forward).bind(*each).arguments)


def _named(model: Model, lengths: Sequence[Length | None], inputs: Sequence[Tensor]) -> Model:
    """With its free lengths called so, and bounded; run at those of `inputs` where nothing else says it."""
    names: dict[str, Length] = {}
    for spec, length in zip(model.inputs, lengths):
        if length is not None and isinstance(dim := spec.shape[AXIS], str):
            names[dim] = length
    model.inputs = tuple(
        replace(spec, shape=tuple(names[d].name if d in names else d for d in spec.shape))
        for spec in model.inputs
    )
    model.dynamic = {
        names[dim].name if dim in names else dim: bounds for dim, bounds in model.dynamic.items()
    }
    free = {spec.shape[AXIS]: x.shape[AXIS] for spec, x in zip(model.inputs, inputs) if x.dim() > AXIS}
    model.sizes = {name: size for name, size in free.items() if isinstance(name, str)}
    return model
