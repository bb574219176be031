"""An ONNX graph as a torch module: `torch.export` traces it, weights under their names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from nncompress.errors import UnsupportedError
from nncompress.loading.onnx.stored import MOST_HOST, Store, attribute_of, inner_graphs, is_host
from nncompress.loading.onnx.values import DTYPES, Value, as_tensor, is_symbolic, items, numbers

MOST_UNROLLED = 20_000  # nodes, as in a run of TorchScript
Rule = Callable[["Call"], Any]  # the op's value, or a list of its values
RULES: dict[str, Rule] = {}  # "Conv", or "com.microsoft.Gelu" -> what computes it

IGNORED: dict[str, frozenset[str]] = {}  # by the same names: attributes that cannot change what is computed

# which buffers a kernel of the first opset may write to
_OF_NO_OP = frozenset({"consumed_inputs"})


def rule(*names: str, ignores: Collection[str] = ()) -> Callable[[Rule], Rule]:
    """Register what computes these ops.

    Args:
        ignores: attributes that it need not read, since no value of theirs changes the result of a form that
            the rule takes. An attribute that is neither read nor named here is refused.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
            IGNORED[name] = _OF_NO_OP.union(ignores)
        return function

    return register


def key_of(node: onnx.NodeProto) -> str:
    """Under which name a rule for it is registered."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


class Missing(UnsupportedError):
    """An op, or a form of one, that is not translated; `op` says which."""

    def __init__(self, op: str, why: str) -> None:
        super().__init__(f"the ONNX op {op} is not read", got=why)
        self.op = op


class Call:
    """One node, with its operands.

    Attributes:
        op, name: its type, and its name for messages.
        opset: of its domain.
        attributes: by name, as Python values; tensors as arrays, graphs as `onnx.GraphProto`.
    """

    def __init__(self, node: onnx.NodeProto, walk: Walk) -> None:
        self.op, self.name, self._node, self.walk = node.op_type, node.name or node.op_type, node, walk
        self.attributes: dict[str, Any] = {a.name: attribute_of(a) for a in node.attribute}
        self.outputs = list(node.output)
        self.opset = walk.opset
        self._unread: set[str | int] = {i for i, name in enumerate(node.input) if name}
        self._unread |= self.attributes.keys() - IGNORED[key_of(node)]

    def finish(self) -> None:
        """Refuse what the rule did not look at: it could mean anything.

        Raises:
            Missing: an attribute or operand was not read.
        """
        left = [f"operand {each}" if isinstance(each, int) else str(each) for each in self._unread]
        if left:
            raise self.refusal(f"with {', '.join(sorted(left))}")

    def __len__(self) -> int:
        return len(self._node.input)

    def has(self, position: int) -> bool:
        """Is that operand given?"""
        return position < len(self._node.input) and bool(self._node.input[position])

    def value(self, position: int) -> Value:
        """An operand as it is."""
        self._unread.discard(position)
        if not self.has(position):
            raise self.refusal(f"its operand {position} is missing")
        return self.walk.value(self._node.input[position])

    def values(self) -> list[Value]:
        """All operands that are given."""
        return [self.value(i) for i in range(len(self)) if self.has(i)]

    def tensor(self, position: int) -> Tensor:
        """An operand as a tensor: of a stored one, the parameter itself."""
        self._unread.discard(position)
        if not self.has(position):
            raise self.refusal(f"its operand {position} is missing")
        return self.walk.tensor(self._node.input[position])

    def optional(self, position: int) -> Tensor | None:
        return self.tensor(position) if self.has(position) else None

    def depends(self, position: int) -> bool:
        """Do the numbers of that operand depend on the model's input?"""
        return self.has(position) and self.walk.known(self._node.input[position]) is None

    def array(self, position: int, what: str = "an operand") -> np.ndarray:
        """An operand whose numbers must be known.

        Raises:
            Missing: they depend on the model's input, or on its state.
        """
        self._unread.discard(position)
        found = self.walk.known(self._node.input[position])
        if found is None:
            state = ", or on what the last call left" if self.walk.store.has_state else ""
            raise self.refusal(f"{what} depends on the input{state}")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        self._unread.discard(name)
        return self.attributes.get(name, default)

    def steps_in(self, name: str, x: Tensor) -> None:
        """Read the attribute that says in which precision steps on the way are computed: torch's kernels take
        that of `x`, float32 for halves, and no other step shows in the result but for its last bits.

        Raises:
            Missing: it is less precise than `x`.
        """
        to = DTYPES.get(self.get(name, 1), torch.float32)
        if to.itemsize < min(x.dtype.itemsize, torch.float32.itemsize):  # doubles no runtime takes in float32
            raise self.refusal(f"with {name}, which rounds its steps to {str(to).removeprefix('torch.')}")

    def axes(self, position: int, rank: int | None = None) -> list[int] | None:
        """Axes: an attribute in older opsets, an operand in newer ones; None where not given."""
        found = self.get("axes")
        if found is None and self.has(position):
            found = items(self.array(position, "which axes"))
        if found is None or rank is None:
            return found
        return [axis % rank for axis in found]

    def computed(self, *known: np.ndarray) -> np.ndarray:
        """The value for operands that are known: by the standard's own evaluator, which no tracing sees."""
        return np.asarray(self._evaluated(known)[0])

    def _evaluated(self, known: Sequence[np.ndarray]) -> list[Any]:
        given: Any = dict(zip((name for name in self._node.input if name), known))
        evaluator = ReferenceEvaluator(self._node, opsets={self._node.domain: self.opset})
        results: Any = evaluator.run(None, given)
        return results

    def folded(self) -> dict[str, np.ndarray]:
        """Its results by name, where no operand depends on the input: so a tensor of the graph is a number to
        who needs one."""
        known = [self.walk.known(name) for name in self._node.input if name]
        if not known or any(each is None or is_symbolic(each) or each.size > MOST_HOST for each in known):
            return {}
        try:
            results = self._evaluated([each for each in known if each is not None])
        except Exception:  # the evaluator lacks the op, or this form: then it is no number, as before
            return {}
        return {name: np.asarray(result) for name, result in zip(self.outputs, results) if name}

    def refusal(self, why: str) -> Missing:
        others = self.walk.how_many(self.op) if list(inner_graphs(self._node)) else 1
        return Missing(
            self.op, f"node {self.name}: {why}" + (f" (one of {others} {self.op})" if others > 1 else "")
        )


def check_unrolled(ops: int) -> None:
    """Refuse more ops than an export can take.

    Raises:
        UnsupportedError: they are more.
    """
    if ops > MOST_UNROLLED:
        raise UnsupportedError(
            "the loops of the ONNX graph are not read: unrolled they are too many ops",
            got=f"{ops:,}",
            expected=f"at most {MOST_UNROLLED:,}",
            remedy="export the model with fewer turns",
        )


class Walk:
    """Values by name while a graph is walked; the graphs inside nodes see those outside.

    Args:
        check: may refuse a node before it is computed, of the graphs inside nodes, too.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        store: Store,
        opset: int,
        outside: Walk | None = None,
        check: Callable[[Call], None] | None = None,
    ) -> None:
        self.graph, self.store, self.opset, self._outside = graph, store, opset, outside
        self.check: Callable[[Call], None] | None = check or (outside.check if outside is not None else None)
        self._values: dict[str, Value] = {}
        self._folded: dict[str, np.ndarray] = {}  # of tensors that do not depend on the input: their numbers
        self._unrolled = 0  # nodes in loops and branches, counted by the outermost graph

    def run(self, inputs: dict[str, Value]) -> list[Value]:
        """Outputs of the graph."""
        self._values.update(inputs)
        for node in self.graph.node:
            key = key_of(node)
            found = RULES.get(key)
            if found is None:
                raise Missing(key, f"node {node.name or key}")
            if self._outside is not None:
                self._outside.count_unrolled()
            call = Call(node, self)
            if self.check is not None:
                self.check(call)
            made = found(call)
            call.finish()
            results = made if isinstance(made, list) else [made]
            results = [np.asarray(x) if isinstance(x, np.generic) else x for x in results]  # of numpy's, 0-d
            for name, result in zip(node.output, results):
                if name and result is not None:
                    self._values[name] = result
            tensors = [result for result in results if isinstance(result, Tensor)]
            few = all(isinstance(x.numel(), int) and x.numel() <= MOST_HOST for x in tensors)
            if tensors and few and not [*inner_graphs(node)]:
                self._folded.update(call.folded())
        return [self.value(output.name) for output in self.graph.output]

    def count_unrolled(self) -> None:
        """One more node that is inside another.

        Raises:
            UnsupportedError: loops in loops make too many of them.
        """
        if self._outside is not None:
            self._outside.count_unrolled()
            return
        self._unrolled += 1
        check_unrolled(self._unrolled)

    def how_many(self, op: str) -> int:
        """Nodes of that type in the whole graph, those inside others included."""
        return _count(self.graph, op) if self._outside is None else self._outside.how_many(op)

    def value(self, name: str) -> Value:
        """A tensor, or known numbers: small stored integers and single floats count as known."""
        found = self._find(name)
        if found is not None:
            return found
        array = self.store.constant(name)
        return array if array is not None and is_host(array) else self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        found = self._find(name)
        if found is not None:
            return as_tensor(found)
        if name not in self.store.arrays:
            raise UnsupportedError("the ONNX graph reads a value that nothing computes", got=name)
        return self.store.tensor(name) if self.store.holds(name) else as_tensor(self.store.arrays[name])

    def known(self, name: str) -> np.ndarray | None:
        """Its numbers, if they depend neither on the input nor on what the last call left."""
        walk = self._where(name)
        if walk is None:
            return self.store.constant(name)
        found = walk._values[name]
        return found if isinstance(found, np.ndarray) else walk._folded.get(name)

    def _find(self, name: str) -> Value | None:
        walk = self._where(name)
        return None if walk is None else walk._values[name]

    def _where(self, name: str) -> Walk | None:
        """The graph that computes it: this one, or one around it."""
        walk: Walk | None = self
        while walk is not None and name not in walk._values:
            walk = walk._outside
        return walk


class OnnxModule(Store):
    """The graph of an ONNX model; takes and returns its tensors in order.

    Args:
        model: with its external data where it says it is, below `folder`.
        states: output -> input of every tensor that one call hands to the next; the module keeps these.
        chosen, fixed: see `Store`.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: str = "",
        states: Mapping[str, str] = MappingProxyType({}),
        chosen: Callable[[str], object] = str,
        fixed: Collection[str] = (),
    ) -> None:
        super().__init__(model.graph, folder, states.values(), chosen, fixed)
        self._handed_on = dict(states)
        self._graph = model.graph
        self._opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        stored = {tensor.name for tensor in model.graph.initializer}
        self.inputs = [value for value in model.graph.input if value.name not in stored]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        walk = Walk(self._graph, self, self._opset)
        given: dict[str, Value] = dict(zip((value.name for value in self.inputs), inputs))
        results = []
        for output, value in zip(self._graph.output, walk.run(given)):
            if output.name in self._handed_on:
                self.tensor(self._handed_on[output.name]).copy_(as_tensor(value))
            else:
                results.append(as_tensor(value))
        return tuple(results)


def _count(graph: onnx.GraphProto, op: str) -> int:
    inside = sum(_count(inner, op) for node in graph.node for inner in inner_graphs(node))
    return inside + sum(node.op_type == op for node in graph.node)


def missing_ops(graph: onnx.GraphProto) -> dict[str, int]:
    """Ops without a rule, the graphs inside nodes included, and how often each occurs."""
    found: dict[str, int] = {}
    for node in graph.node:
        key = key_of(node)
        if key not in RULES:
            found[key] = found.get(key, 0) + 1
        for inner in inner_graphs(node):
            for name, count in missing_ops(inner).items():
                found[name] = found.get(name, 0) + count
    return found


def sizes(tensor: Tensor) -> np.ndarray:
    """The shape of a tensor as known numbers, symbolic where a dim is free."""
    return numbers(list(tensor.shape))
