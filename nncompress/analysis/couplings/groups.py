"""The result of the analysis: groups of units, what each unit consists of, what its removal leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from nncompress.analysis.cost import node_macs
from nncompress.analysis.couplings.labels import PIN
from nncompress.analysis.couplings.trace import Trace, folded_name
from nncompress.analysis.couplings.value import Result, Value
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.edit.resize import Kept, Survivors
from nncompress.ir.graph.shapes import Shapes, fed_by_inputs

Indices = NDArray[np.int64]
Removal = Mapping[str, Sequence[int] | Indices]
Growth = Mapping[str, Sequence[int] | Indices]  # group -> the unit that each new unit is placed beside


@dataclass(frozen=True)
class Member:
    """One dim of one stored tensor that a group owns indices of.

    Attributes:
        tensor: dotted name.
        dim: dim of the tensor.
        unit: `[size of the dim]`: which of the group's units each index belongs to, -1 for none.
        role: "output" of a layer that produces the units, "input" of one that consumes them, or "vector":
            a scale, bias or statistic that goes along.
    """

    tensor: str
    dim: int
    unit: Indices
    role: str

    @property
    def indices(self) -> Indices:
        """The indices that belong to the group."""
        return np.flatnonzero(self.unit >= 0)


@dataclass(frozen=True)
class Site:
    """An activation dim that carries a group: statistics of the units can be taken here.

    Attributes:
        node: the graph node.
        dim: dim of its tensor.
        unit: `[size of the dim]`: the unit of each position, -1 for none.
    """

    node: fx.Node
    dim: int
    unit: Indices


@dataclass(frozen=True)
class Group:
    """Interchangeable units: each touches the same dims of the same tensors, the same number of times.

    Removing some but not all nodes of a group always leaves every tensor non-empty.

    Attributes:
        carriers: every computed tensor that has the units; sites: those among them that depend on an input.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    carriers: tuple[Site, ...] = field(repr=False)
    sites: tuple[Site, ...] = field(repr=False)

    def role(self, role: str) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == role)

    @property
    def producers(self) -> tuple[Member, ...]:
        return self.role("output")

    @property
    def consumers(self) -> tuple[Member, ...]:
        return self.role("input")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it spans, in graph order."""
        return tuple(dict.fromkeys(layer_of(m.tensor) for m in self.members))


def layer_of(tensor: str) -> str:
    """The module that a stored tensor belongs to; a bare parameter keeps its own name."""
    module, _, leaf = tensor.rpartition(".")
    return module if module and any(part in leaf for part in ("weight", "bias", "running_")) else tensor


class SurvivingShapes(Shapes):
    """The shapes at batch 1 that a removal or a growth would leave."""

    def __init__(self, model: Model, survivors: Survivors) -> None:
        super().__init__(model)
        self._survivors = survivors

    def of(self, node: Any) -> tuple[int, ...]:
        kept = self._survivors.of(node)
        # A dim that merges batch and heads was traced at another batch: its share counts, not its number.
        return tuple(
            size * int(kept[d].sum()) // len(kept[d]) if d in kept else size
            for d, size in enumerate(super().of(node))
        )


class Couplings:
    """What can be removed from a model.

    Attributes:
        groups: in graph order; names are stable for one graph.
        pinned: stored tensor and dim -> why (part of) it can not be pruned.
    """

    def __init__(self, model: Model, trace: Trace) -> None:
        self.model = model
        self.trace = trace
        carriers = self._carriers()
        group_of, unit_of = self._partition(carriers)
        self.groups = self._build(carriers, group_of, unit_of)
        self.pinned = self._reasons(group_of)
        self._labels = {
            group.name: np.flatnonzero(group_of == number)[np.argsort(unit_of[group_of == number])]
            for number, group in enumerate(self.groups)
        }

    def __getitem__(self, name: str) -> Group:
        return next(g for g in self.groups if g.name == name)

    # -- making groups -------------------------------------------------------------------------------------

    def _carriers(self) -> list[tuple[str | fx.Node, int, Indices]]:
        """Every labelled dim of every stored tensor and of every node: (which, dim, class per index)."""
        found: list[tuple[str | fx.Node, int, Indices]] = []
        for name, value in self.trace.tensors.items():
            found += [(name, dim, roots) for dim, roots in self.trace.dims(value)]
        for node, result in self.trace.values.items():
            if isinstance(result, Value) and node.op == "call_function":
                found += [(node, dim, roots) for dim, roots in self.trace.dims(result)]
        return found

    def _partition(self, carriers: Sequence[tuple[str | fx.Node, int, Indices]]) -> tuple[Indices, Indices]:
        """Classes that occur in the same carriers equally often are interchangeable: one group.

        Every carrier gets a random 64-bit number; a class's signature is the sum of its carriers' numbers.
        """
        size = len(self.trace.labels)
        numbers = np.random.default_rng(0).integers(1, 2**63, len(carriers), dtype=np.uint64)
        signature = np.zeros(size, np.uint64)
        stored = np.zeros(size, bool)
        for (which, _, roots), number in zip(carriers, numbers):
            np.add.at(signature, roots, number)
            stored[roots] |= isinstance(which, str)
        stored[PIN] = False
        owners = np.flatnonzero(stored)
        group_of = np.full(size, -1)
        unit_of = np.full(size, -1)
        _, first, inverse, counts = np.unique(
            signature[owners], return_index=True, return_inverse=True, return_counts=True
        )
        number = 0
        for which in np.argsort(first):
            if counts[which] > 1:
                mine = owners[inverse == which]
                group_of[mine] = number
                unit_of[mine] = np.arange(len(mine))
                number += 1
        return group_of, unit_of

    def _build(
        self,
        carriers: Sequence[tuple[str | fx.Node, int, Indices]],
        group_of: Indices,
        unit_of: Indices,
    ) -> tuple[Group, ...]:
        count = int(group_of.max(initial=-1)) + 1
        flowing = fed_by_inputs(self.model.graph)
        members: list[list[Member]] = [[] for _ in range(count)]
        carried: list[list[Site]] = [[] for _ in range(count)]
        for which, dim, roots in carriers:
            groups = group_of[roots]
            for number in np.unique(groups[groups >= 0]):
                unit = np.where(groups == number, unit_of[roots], -1)
                if isinstance(which, str):
                    members[number].append(Member(which, dim, unit, self._role(which, dim)))
                else:
                    carried[number].append(Site(which, dim, unit))
        made = []
        seen: dict[str, int] = {}
        for own, places in zip(members, carried):
            first = next((m for m in own if m.role == "output"), own[0])
            name = layer_of(first.tensor)
            seen[name] = seen.get(name, 0) + 1
            name = name if seen[name] == 1 else f"{name}#{seen[name]}"
            size = int(max(m.unit.max() for m in own)) + 1
            sites = tuple(site for site in places if site.node in flowing)
            made.append(Group(name, size, tuple(own), tuple(places), sites))
        return tuple(made)

    def _role(self, tensor: str, dim: int) -> str:
        key = (tensor, dim)
        return "output" if key in self.trace.outputs else "input" if key in self.trace.inputs else "vector"

    def _reasons(self, group_of: Indices) -> dict[tuple[str, int], str]:
        reasons = {}
        for name, value in self.trace.tensors.items():
            for factor in value.factors:
                roots = self.trace.labels.root(factor.ravel())
                fixed = group_of[roots] < 0
                if fixed.any():
                    why = self.trace.labels.reason(roots[fixed][:1])[0] or "a single node"
                    dim = int(np.argmax(factor.shape))
                    reasons[name, dim] = why
        return reasons

    # -- what a removal leaves -----------------------------------------------------------------------------

    def survivors(self, removal: Removal) -> Survivors:
        """Which indices of every stored tensor and node stay.

        Raises:
            UsageError: an unknown group or unit, or nothing would be left of a group.
        """
        return self._with(~self._gone(removal))

    def widened(self, growth: Growth) -> Survivors:
        """How often every index of every stored tensor and node occurs once units have been copied.

        Raises:
            UsageError: an unknown group or unit.
        """
        times = np.ones(len(self.trace.labels), np.int64)
        for name, units in growth.items():
            np.add.at(times, self._labels_of(name)[self._checked(name, units)], 1)
        return self._with(times)

    def _with(self, times: NDArray[Any]) -> Survivors:
        """`times`: per label, whether or how often it is there afterwards."""

        def kept(value: Value) -> Kept:
            masks: Kept = {}
            for dim, roots in self.trace.dims(value):
                own = times[roots]
                if (own != 1).any():
                    masks[dim] = masks[dim] * own if dim in masks else own
            return masks

        def nested(result: Result) -> Any:
            if isinstance(result, list):
                return [nested(r) for r in result]
            return kept(result) if isinstance(result, Value) else {}

        def shape(result: Result) -> Any:
            if isinstance(result, list):
                return [shape(r) for r in result]
            return result.shape if isinstance(result, Value) else None

        tensors = {name: kept(value) for name, value in self.trace.tensors.items()}
        return Survivors(
            {name: masks for name, masks in tensors.items() if masks},
            {node: nested(result) for node, result in self.trace.values.items()},
            {node: shape(result) for node, result in self.trace.values.items()},
        )

    def _gone(self, removal: Removal) -> NDArray[np.bool_]:
        gone = np.zeros(len(self.trace.labels), bool)
        for name, units in removal.items():
            labels = self._labels_of(name)
            chosen = np.unique(self._checked(name, units))
            if len(chosen) >= len(labels):
                raise UsageError(f"all {len(labels)} nodes of {name} would go", expected="at least one left")
            gone[labels[chosen]] = True
        return gone

    def _labels_of(self, name: str) -> Indices:
        """The label of every unit of a group."""
        if name not in self._labels:
            raise UsageError(f"no group of nodes is called {name!r}", expected=", ".join(self._labels))
        return self._labels[name]

    def _checked(self, name: str, units: Sequence[int] | Indices) -> Indices:
        size, chosen = len(self._labels_of(name)), np.asarray(units, np.int64)
        outside = chosen[(chosen < 0) | (chosen >= size)]
        if len(outside):
            raise UsageError(f"{name} has no node {outside[0]}", expected=f"0 to {size - 1}")
        return chosen

    # -- size ----------------------------------------------------------------------------------------------

    def parameters(self, removal: Removal | None = None) -> int:
        """Parameters left after a removal, each tied one counted once."""
        kept = self.survivors(removal or {}).tensors
        total = 0
        for name, shape in self._parameter_shapes().items():
            sizes = list(shape)
            for dim, mask in kept.get(name, {}).items():
                sizes[dim] = int(mask.sum())
            total += prod(sizes)
        return total

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter, with a folded weight in the place of what it is computed from."""
        folded = {folded_name(node) for node in self.trace.folded}
        parameters = dict(self.model.graph_module.named_parameters())
        tensors = self.trace.tensors
        return {n: v.shape for n, v in tensors.items() if n in parameters or n in folded}

    def macs(self, removal: Removal | None = None) -> int:
        """Multiply-accumulates for one sample after a removal, without carrying it out."""
        return self._macs(self.survivors(removal or {}))

    def grown_macs(self, growth: Growth) -> int:
        """Multiply-accumulates for one sample after a growth, without carrying it out."""
        return self._macs(self.widened(growth))

    def _macs(self, survivors: Survivors) -> int:
        shapes = SurvivingShapes(self.model, survivors)
        total = sum(node_macs(n, shapes) for n in self.model.graph.nodes if n.op == "call_function")
        return total // (self.model.fixed_batch or 1)

    def prunable_share(self) -> float:
        """The share of parameters that lie in at least one removable unit."""
        inside: dict[str, dict[int, Indices]] = {}
        for group in self.groups:
            for m in group.members:
                dims = inside.setdefault(m.tensor, {})
                dims[m.dim] = np.maximum(dims.get(m.dim, m.unit), m.unit)
        total = outside = 0
        for name, shape in self._parameter_shapes().items():
            sizes = list(shape)
            for dim, unit in inside.get(name, {}).items():
                sizes[dim] = int((unit < 0).sum())
            total += prod(shape)
            outside += prod(sizes)
        return 1 - outside / total if total else 0.0
