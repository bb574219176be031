"""One walk through the graph that labels every tensor, then the choice of units where labels form grids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.couplings.labels import Factor, Labels, Option, shrink, varying
from nncompress.analysis.couplings.rules import TRANSPARENT, rule_of
from nncompress.analysis.couplings.value import (
    EXAMPLE_BATCH,
    UNKNOWN_SIZE,
    Result,
    Value,
    arguments,
    nested_shape,
)
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes, fed_by_inputs
from nncompress.ir.graph.state import NEXT_STATE
from nncompress.ir.layers.places import place


class Trace:
    """The labelled graph.

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
        self._pending: list[tuple[str, Sequence[Factor], Sequence[Option]]] = []
        self._shapes = Shapes(model, EXAMPLE_BATCH, UNKNOWN_SIZE)
        self._owner: dict[int, str] = {}  # id of a tensor -> first name
        self._starts: list[int] = []  # first label of each (tensor, dim), ascending
        self._dims: list[tuple[str, int]] = []
        fold, inner = constants_to_fold(model)
        for node in model.graph.nodes:
            self.labels.context = place(node)
            self.values[node] = None if node in inner else self._visit(node, fold)
        for context, arrays, options in self._pending:
            self.labels.context = context
            self.labels.choose(arrays, options)
        self.labels.context = ""
        self._choose_units()

    # -- what the rules use --------------------------------------------------------------------------------

    def value(self, node: Any) -> Value:
        """The labelled value of an argument; a number is a scalar."""
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        return value if isinstance(value, Value) else Value(())

    def shape(self, node: fx.Node) -> Any:
        return nested_shape(self._shapes, node.meta.get("val"))

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

    def decide_later(self, arrays: Sequence[Factor], *options: Option) -> None:
        """Leave a choice of units until all other ties are known; see `Labels.choose`."""
        self._pending.append((self.labels.context, arrays, options))

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

    # -- the walk ------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node, fold: set[fx.Node]) -> Result:
        if node.op == "get_attr":
            return self._stored_tensor(node)
        if node.op == "placeholder":
            return Value(self.shape(node)) if isinstance(self.shape(node), tuple) else None
        if node.op == "output":
            for source in node.all_input_nodes:
                self.fix_all(self.value(source), "an output of the model")
            return None
        if node in fold:
            self.folded.append(node)
            return self._label_dims(folded_name(node), self.shape(node))
        if node.target is NEXT_STATE:  # what is written there is what the next call reads
            self.labels.unify(
                [(value.factors, value.spans) for value in map(self.value, node.args)], "meets a fixed size"
            )
            return None
        if self.shape(node) is None and not isinstance(node.meta.get("val"), list | tuple):
            return None  # a size or another number
        rule = rule_of(node)
        if rule is None:
            return self.unknown(node)
        try:
            result = rule(self, node, arguments(node))
            _check(result, self.shape(node))
        except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
            # A form of the op that its rule does not foresee. Ties made so far only tie more.
            self.surprises[node] = f"{type(error).__name__}: {error}"
            return self.unknown(node)
        return result

    def _stored_tensor(self, node: fx.Node) -> Result:
        try:
            tensor = self.model.tensor(str(node.target))
        except AttributeError:
            return None
        if not isinstance(tensor, Tensor):
            return None  # a submodule of a higher-order op
        name = self._owner.setdefault(id(tensor), str(node.target))
        if name not in self.tensors:
            weak = not isinstance(tensor, torch.nn.Parameter)
            self.tensors[name] = self._label_dims(name, tuple(tensor.shape), weak=weak)
        known = self.tensors[name]
        return Value(known.shape, list(known.factors))

    def _label_dims(self, name: str, shape: tuple[int, ...], *, weak: bool = False) -> Value:
        factors = []
        for dim, size in enumerate(shape):
            if size > 1:
                self._starts.append(len(self.labels))
                self._dims.append((name, dim))
                factors.append(self.fresh(shape, dim, weak=weak))
        value = Value(shape, factors)
        self.tensors[name] = value
        return Value(shape, list(factors))

    # -- grids ---------------------------------------------------------------------------------------------

    def _choose_units(self) -> None:
        """Every factor must vary along one dim only: of a grid the axis with most units stays.

        Uniting labels can turn other grids into vectors, never the reverse, so this ends.
        """
        changed = True
        while changed:
            changed = False
            for results in self.values.values():
                for value in flat(results):
                    for factor in value.factors:
                        factor = shrink(self.labels.find(factor))
                        along = varying(factor)
                        if len(along) > 1:
                            self.labels.choose([factor], [_constant_but(along, d) for d in sorted(along)])
                            changed = True
                        elif not along and factor.size and factor.flat[0]:
                            self.labels.pin(factor, "a tensor would be left empty")
                            changed = True

    def dims(self, node_or_value: fx.Node | Value) -> Iterator[tuple[int, Factor]]:
        """`(dim, labels along it)` for every labelled dim of a tensor, pinned positions being PIN."""
        value = self.value(node_or_value) if isinstance(node_or_value, fx.Node) else node_or_value
        for factor in value.factors:
            factor = shrink(self.labels.find(factor))
            for dim in varying(factor):
                yield dim, factor.ravel()


def _constant_but(dims: frozenset[int], keep: int) -> Option:
    def unite(labels: Labels, arrays: Sequence[Factor]) -> None:
        labels.unite_along(arrays[0], dims - {keep})

    return unite


def _check(result: Result, shape: Any) -> None:
    """Factors broadcast against the tensor that they label.

    Raises:
        ValueError: they do not.
    """
    if isinstance(result, list):
        for each, one in zip(result, shape, strict=True):
            _check(each, one)
    elif isinstance(result, Value):
        for sizes in (result.shape, *(f.shape for f in result.factors)):
            if len(sizes) != len(shape) or any(s not in (1, n) for s, n in zip(sizes, shape)):
                raise ValueError(f"labels of shape {sizes} for a tensor of shape {shape}")


def flat(result: Result) -> Iterator[Value]:
    if isinstance(result, Value):
        yield result
    elif isinstance(result, list):
        for each in result:
            yield from flat(each)


def constants_to_fold(model: Model) -> tuple[set[fx.Node], set[fx.Node]]:
    """Nodes that compute a weight from weights by other means than moving and multiplying.

    Labels cannot follow a mean over a weight's inputs; but the computed weight is a constant, and its own
    dims can be labelled. Only the last node of such a computation counts, the one that data meets.

    Returns:
        Those nodes, and the nodes that serve nothing else than computing them.
    """
    constant: set[fx.Node] = set()
    opaque: set[fx.Node] = set()
    fold: set[fx.Node] = set()
    fed = fed_by_inputs(model.graph)
    for node in model.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr" and node not in fed:
            constant.add(node)
        elif sources and constant.issuperset(sources) and _is_constant(node):
            constant.add(node)
            if _is_weight(node) and (rule_of(node) not in TRANSPARENT or not opaque.isdisjoint(sources)):
                opaque.add(node)
        else:
            fold.update(n for n in sources if n in opaque)
    inner: set[fx.Node] = set()
    for node in reversed(list(model.graph.nodes)):
        if node in constant and node not in fold and node.users and (inner | fold).issuperset(node.users):
            inner.add(node)
    return fold, inner


def _results(node: fx.Node) -> list[Any]:
    values = node.meta.get("val")
    return list(values) if isinstance(values, list | tuple) else [values]


def _is_constant(node: fx.Node) -> bool:
    """A call whose results are tensors of static sizes."""
    return node.op == "call_function" and all(
        isinstance(v, Tensor) and all(isinstance(s, int) for s in v.shape) for v in _results(node)
    )


def _is_weight(node: fx.Node) -> bool:
    """A constant of floats. What is computed of integers (an index into a table) is not to be stored."""
    return all(v.dtype.is_floating_point or v.dtype.is_complex for v in _results(node))


def folded_name(node: fx.Node) -> str:
    """Where a folded weight is stored: beside the first weight that it is computed from."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    layer, parametrized, rest = str(node.target).partition(".parametrizations.")
    return f"{layer}.{rest.split('.')[0]}" if parametrized else f"{layer}_folded"
