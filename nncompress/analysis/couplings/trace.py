"""One walk through the graph that labels every tensor, then the choice of units where labels form grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.couplings.labels import Factor, Labels, Option, shrink, varying
from nncompress.analysis.couplings.rules.table import TRANSPARENT, rule_of
from nncompress.analysis.couplings.tracer import Tracer
from nncompress.analysis.couplings.value import Result, Value, arguments, flat
from nncompress.ir import Model
from nncompress.ir.graph.places import place
from nncompress.ir.graph.shapes import fed_by_inputs
from nncompress.ir.graph.state import NEXT_STATE


class Trace(Tracer):
    """The labelled graph."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        fold, inner = constants_to_fold(model)
        for node in model.graph.nodes:
            self.labels.context = place(node)
            self.values[node] = None if node in inner else self._visit(node, fold)
        for context, arrays, options in self.labels.pending:
            self.labels.context = context
            self.labels.choose(arrays, options)
        self.labels.context = ""
        self._choose_units()

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
            return self.label_dims(folded_name(node), self.shape(node))
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
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
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
            self.tensors[name] = self.label_dims(name, tuple(tensor.shape), weak=weak)
        known = self.tensors[name]
        return Value(known.shape, list(known.factors))

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
