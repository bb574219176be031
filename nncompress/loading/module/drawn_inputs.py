"""Random inputs that a network takes: ids that its tables have, masks that leave it something to see.

What True means, and which input is looked up in which table, no signature says: so the network is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, product

import torch
from torch import Tensor, nn

from nncompress.ir import InputSpec, Model
from nncompress.ir.formats.samples import samples_of
from nncompress.ir.graph.inputs import MASKS, random_input
from nncompress.loading.compare import run_source
from nncompress.loading.module.dry_run import TooLarge, dry_run
from nncompress.memory import most_bytes

Specs = tuple[InputSpec, ...]

_BOOLEAN = "bool"
_MOST_MEANINGS = 32  # of several masks together that are tried


def drawn_for(
    module: nn.Module, specs: Sequence[InputSpec], limits: Mapping[str, int] | None = None, seed: int = 0
) -> tuple[Tensor, ...]:
    """Random inputs of those types and shapes, all of whose sizes are numbers: normal floats; whole numbers
    and booleans from the first ranges with which the module runs, and gives numbers.

    Args:
        limits: by name, what integers stay below where no table says it.
    """

    def draw(chosen: Specs) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(random_input(spec, tuple(map(int, spec.shape)), generator) for spec in chosen)

    stated = {name: (0, most) for name, most in (limits or {}).items()}
    choices = _choices(module, specs, stated)
    first = draw(choices[0])
    if len(choices) == 1 or any(each.is_meta for each in module.parameters()):
        return first
    try:
        dry_run(module, first, most_bytes())
    except TooLarge:  # told by who runs it next
        return first
    return draw(_most_defined(choices, lambda chosen: run_source(module, draw(chosen))))


def settle_masks(model: Model) -> None:
    """Let its booleans be drawn such that it gives numbers: as they are, where it does so with these."""
    if samples_of(model.inputs) or all(spec.dtype != _BOOLEAN for spec in model.inputs):
        return

    def outputs(inputs: Specs) -> Sequence[Tensor]:
        model.inputs = inputs
        with torch.no_grad():
            return model.outputs_of(*model.example_inputs(max(2, model.least_batch)))

    given = model.inputs
    model.inputs = _most_defined([given, *_with_masks(given)], outputs)


def _choices(
    module: nn.Module, specs: Sequence[InputSpec], stated: Mapping[str, tuple[int, int]]
) -> list[Specs]:
    """The specs with the ranges that may be theirs, the likeliest first; those that are stated are sure."""
    rows = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    likely = [(0, most) for most in (*rows[:1], min(rows, default=2), 2, 1)] + [(1, 2)]

    def ranged(spec: InputSpec, ids: tuple[int, int]) -> InputSpec:
        dtype = spec.torch_dtype()
        low, high = stated.get(spec.name, ids)
        return spec if dtype.is_floating_point or dtype.is_complex else replace(spec, low=low, high=high)

    of_ids = (tuple(ranged(spec, ids) for spec in specs) for ids in likely)
    return list(dict.fromkeys(each for chosen in of_ids for each in _with_masks(chosen)))


def _with_masks(specs: Specs) -> list[Specs]:
    """The specs with the ranges that their booleans may have: the same, then each another."""
    alike = [[mask] * len(specs) for mask in MASKS]
    apart = product(*(MASKS[:2] if spec.dtype == _BOOLEAN else MASKS[:1] for spec in specs))
    return [
        tuple(
            replace(spec, low=low, high=high) if spec.dtype == _BOOLEAN else spec
            for spec, (low, high) in zip(specs, masks)
        )
        for masks in (*alike, *islice(apart, _MOST_MEANINGS))
    ]


def _most_defined(choices: Sequence[Specs], run: Callable[[Specs], Sequence[Tensor]]) -> Specs:
    """The first of the choices of whose outputs the least is no number; the first of all where none runs."""
    best, least = choices[0], math.inf
    for each in choices:
        try:
            outputs = [tensor for tensor in run(each) if tensor.numel()]
        except Exception:  # whatever the network raises on values that it does not take
            continue
        undefined = sum(float((~tensor.isfinite()).double().mean()) for tensor in outputs)
        if undefined < least:
            best, least = each, undefined
        if not undefined:
            break
    return best
