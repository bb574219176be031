"""What a rule may call, and what it knows of the graph so far. Rules stand on it, the walk on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import fx

from nncompress.analysis.couplings.labels import Factor, Labels, shrink, varying
from nncompress.analysis.couplings.value import EXAMPLE_BATCH, UNKNOWN_SIZE, Result, Value, flat, nested_shape
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes


class Tracer:
    """What is known of the graph while it is labelled, and what a rule may call.

    Attributes:
        values: node -> its labelled value (a list for several results, None for what is no tensor).
        tensors: dotted name of every stored tensor that the graph reads -> its value. One dim, one factor.
        contractions: node -> (operand, its contracted dims): where removed units are consumed.
        survivor_norms: node -> dims it normalises over; removal there leaves the survivors'
            statistics.
        folded: nodes that compute a weight from weights in a way that labels cannot follow (weight
            standardisation, weight norm); their result is labelled as a weight of its own.
        surprises: nodes whose rule failed on them, with the error; treated as unknown ops.
        inputs, outputs: per stored tensor, the dims that serve as a layer's input or output features.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.labels = Labels()
        self.values: dict[fx.Node, Result] = {}
        self.tensors: dict[str, Value] = {}
        self.contractions: dict[fx.Node, list[tuple[fx.Node, tuple[int, ...]]]] = {}
        self.survivor_norms: dict[fx.Node, tuple[int, ...]] = {}
        self.folded: list[fx.Node] = []
        self.surprises: dict[fx.Node, str] = {}
        self.inputs: set[tuple[str, int]] = set()
        self.outputs: set[tuple[str, int]] = set()
        self._read: list[tuple[Factor, int]] = []  # labels of what a layer reads, and the dim it sums over
        self._shapes = Shapes(model, EXAMPLE_BATCH, UNKNOWN_SIZE)
        self._owner: dict[int, str] = {}  # id of a tensor -> first name
        self._starts: list[int] = []  # first label of each (tensor, dim), ascending
        self._dims: list[tuple[str, int]] = []

    def value(self, node: Any) -> Value:
        """The labelled value of an argument; a number is a scalar."""
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        return value if isinstance(value, Value) else Value(())

    def shape(self, node: fx.Node) -> Any:
        return nested_shape(self._shapes, node.meta.get("val"))

    def number(self, argument: Any) -> int:
        """A number among a call's arguments, which may be computed from sizes."""
        return self._shapes.size(argument.meta["val"]) if isinstance(argument, fx.Node) else argument

    def static(self, node: fx.Node, dim: int) -> bool:
        return isinstance(node.meta["val"].shape[dim], int)

    def operands(self, node: fx.Node) -> list[Value]:
        found = [self.values.get(n) for n in node.all_input_nodes]
        return [v for v in found if isinstance(v, Value)]

    def fresh(self, shape: Sequence[int], dim: int, *, weak: bool = True) -> Factor:
        where = [1] * len(shape)
        where[dim] = shape[dim]
        return self.labels.fresh(shape[dim], weak=weak).reshape(where)

    def fix_all(self, value: Value, why: str) -> None:
        for factor in value.factors:
            self.labels.pin(factor, why)

    def unknown(self, node: fx.Node) -> Result:
        """Nothing that this op touches may be removed."""
        for source in node.all_input_nodes:
            for value in flat(self.values.get(source)):
                self.fix_all(value, "an op without a rule")

        def plain(shape: Any) -> Result:
            return (
                [plain(s) for s in shape]
                if isinstance(shape, list)
                else None
                if shape is None
                else Value(shape)
            )

        return plain(self.shape(node))

    def contraction(self, node: fx.Node, operand: Any, *, outputs: list[int], inputs: list[int]) -> None:
        """Say where `node` sums over a labelled dim: `inputs` are the contracted dims of `operand`."""
        self.contractions.setdefault(node, []).append((operand, tuple(inputs)))
        self.roles(operand, outputs=outputs, inputs=inputs)

    def roles(self, operand: Any, *, outputs: list[int], inputs: list[int]) -> None:
        for dims, found in ((outputs, self.outputs), (inputs, self.inputs)):
            for dim in dims:
                for factor in self.value(operand).factors:
                    if factor.shape[dim] > 1:
                        found.update(self._stored(factor))
                        if found is self.inputs:
                            self._read.append((factor, dim))

    def consumers(self) -> set[tuple[str, int]]:
        """The `inputs` along which units are summed over, now that units are chosen: the product of queries
        and keys sums over the inside of a head, and so not over heads."""
        found: set[tuple[str, int]] = set()
        for factor, dim in self._read:
            if shrink(self.labels.find(factor)).shape[dim] > 1:
                found.update(self._stored(factor))
        return found

    def _stored(self, factor: Factor) -> Iterator[tuple[str, int]]:
        positions = np.searchsorted(self._starts, factor.ravel(), side="right") - 1
        for position in np.unique(positions[positions >= 0]):
            tensor, dim = self._dims[position]
            if factor.max() < self._starts[position] + self.tensors[tensor].shape[dim]:
                yield tensor, dim

    def label_dims(self, name: str, shape: tuple[int, ...], *, weak: bool = False) -> Value:
        factors = []
        for dim, size in enumerate(shape):
            if size > 1:
                self._starts.append(len(self.labels))
                self._dims.append((name, dim))
                factors.append(self.fresh(shape, dim, weak=weak))
        value = Value(shape, factors)
        self.tensors[name] = value
        return Value(shape, list(factors))

    def dims(self, node_or_value: fx.Node | Value) -> Iterator[tuple[int, Factor]]:
        """`(dim, labels along it)` for every labelled dim of a tensor, pinned positions being PIN."""
        value = self.value(node_or_value) if isinstance(node_or_value, fx.Node) else node_or_value
        for factor in value.factors:
            factor = shrink(self.labels.find(factor))
            for dim in varying(factor):
                yield dim, factor.ravel()
