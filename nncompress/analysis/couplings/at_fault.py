"""Which rule was wrong: every op of a cut graph compared with the original's, on the original's own values.

Where a removal cannot be proven, one run of the zeroed reference tells all ops at fault together. Each op of
the cut graph is given the surviving part of what the reference computed, and must give the surviving part of
what the reference gives. An op that does not is at fault whatever went wrong before it, and so are the groups
of units that it carries. Nothing is exported for this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.couplings.groups import Couplings, Removal
from nncompress.analysis.couplings.proof import WidenedReference, surviving
from nncompress.analysis.couplings.removal import find_couplings, fold_weights
from nncompress.analysis.couplings.value import EXAMPLE_BATCH
from nncompress.errors import NNCompressError
from nncompress.ir.edit.resize import Survivors, rewrite_literal
from nncompress.ir.graph.places import place
from nncompress.ir.graph.verify import in_double

TOLERANCE = 1e-3  # relative to the largest value read or made: one op in float32 stays within 1e-6


@dataclass(frozen=True)
class Fault:
    """An op that computes something else once units are gone."""

    node: fx.Node
    why: str


def groups_at_fault(couplings: Couplings, removal: Removal) -> dict[str, str]:
    """The groups that cannot be removed, with the op that goes wrong. Empty if every op is right.

    Where an op carries several groups, each of them is tried alone on it; all are blamed if none fails alone.
    """
    model = couplings.model.copy()
    fold_weights(model)
    couplings = find_couplings(model)
    refused: dict[str, str] = {}
    for fault in _faults(couplings, removal):
        suspects = [name for name in removal if _carries(couplings, {name: removal[name]}, fault.node)]
        alone = []
        for name in suspects if len(suspects) > 1 else []:
            own = _faults(couplings, {name: removal[name]})
            alone += [name for each in own if each.node is fault.node]
        for name in alone or suspects:
            refused.setdefault(name, f"{place(fault.node)}: {fault.why}")
    return refused


def _carries(couplings: Couplings, removal: Removal, node: fx.Node) -> bool:
    survivors = couplings.survivors(removal)
    return any(_reduced(survivors.nodes.get(each)) for each in (node, *node.all_input_nodes))


def _reduced(kept: Any) -> bool:
    return any(map(_reduced, kept)) if isinstance(kept, list) else bool(kept)


def _faults(couplings: Couplings, removal: Removal) -> list[Fault]:
    comparison = _Comparison(couplings, removal)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        comparison.run(*couplings.model.example_inputs(EXAMPLE_BATCH, 0))
    return comparison.faults


class _Comparison(WidenedReference):
    """Runs the reference, and beside it each op of the cut graph on the surviving part of what it reads."""

    def __init__(self, couplings: Couplings, removal: Removal) -> None:
        super().__init__(couplings, removal)
        self.faults: list[Fault] = []
        self._kept = self._survivors.nodes
        twins = couplings.model.copy().graph.nodes
        self._twin: dict[fx.Node, fx.Node] = dict(zip(couplings.model.graph.nodes, twins, strict=True))
        self._original = {twin: node for node, twin in self._twin.items()}
        shapes = {self._twin[n]: v for n, v in self._survivors.shapes.items()}
        own = Survivors({}, {self._twin[n]: v for n, v in self._kept.items()}, shapes)
        self._unwritable: dict[fx.Node, str] = {}
        for node, twin in self._twin.items():
            try:
                rewrite_literal(twin, own)
            except NNCompressError as error:
                self._unwritable[node] = str(error).splitlines()[0]

    def run_node(self, n: fx.Node) -> Any:
        state = torch.get_rng_state()
        result = super().run_node(n)
        if n.op == "call_function" and any(_reduced(self._kept.get(x)) for x in (n, *n.all_input_nodes)):
            after = torch.get_rng_state()
            torch.set_rng_state(state)  # an op that draws noise draws the same
            why = self._unwritable.get(n) or self._difference(n, result)
            torch.set_rng_state(after)
            if why:
                self.faults.append(Fault(n, why))
        return result

    def _difference(self, n: fx.Node, result: Any) -> str:
        """What is wrong with the cut op; "" if nothing is."""
        twin = self._twin[n]

        def part_of(operand: fx.Node) -> Any:
            node = self._original[operand]
            return _part(self.env[node], self._kept.get(node))

        args, kwargs = fx.map_arg((twin.args, twin.kwargs), part_of)
        try:
            got = twin.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:  # whatever an op raises on sizes that do not fit
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        scale = max([1e-12, *(_largest(self.env[x]) for x in n.all_input_nodes)])
        return _differs(got, _part(result, self._kept.get(n)), scale)


def _part(value: Any, kept: Any) -> Any:
    """What survives of a value; a list of results part by part."""
    if isinstance(value, list | tuple):
        each = kept if isinstance(kept, list) else [None] * len(value)
        return [_part(v, k) for v, k in zip(value, each)]
    if isinstance(value, Tensor) and isinstance(kept, dict):
        return surviving(value, kept)
    return value


def _largest(value: Any) -> float:
    if not isinstance(value, Tensor) or not value.numel():
        return 0.0
    return float(torch.nan_to_num(value.abs().double(), 0.0, 0.0, 0.0).max()) * TOLERANCE


def _differs(got: Any, wanted: Any, scale: float) -> str:
    """Differences are relative to the largest value made, or to a thousandth of the largest one read: what
    cancels is noise."""
    if isinstance(wanted, list):
        return next(filter(None, (_differs(g, w, scale) for g, w in zip(got, wanted))), "")
    if not isinstance(wanted, Tensor):
        return ""
    if got.shape != wanted.shape:
        return f"gives {tuple(got.shape)} where {tuple(wanted.shape)} is left"
    got, wanted = (torch.nan_to_num(in_double(v)) for v in (got, wanted))
    if not wanted.numel():
        return ""
    scale = max(scale, float(wanted.abs().max()))
    error = float((got - wanted).abs().max()) / scale
    return f"differs by {error:.2g} of its largest value" if error > TOLERANCE else ""
