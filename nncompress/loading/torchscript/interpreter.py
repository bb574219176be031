"""A TorchScript graph as a torch module: `torch.export` traces it, weights under their names."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nncompress.errors import UnsupportedError
from nncompress.ir.unchanged import unchanged
from nncompress.loading.constants import is_weight
from nncompress.loading.json_schema import Rejected
from nncompress.loading.pt2.operators import operator_name
from nncompress.loading.torchscript.builtins import BUILTINS, MEMORY_FORMATS, OF_TENSORS, SCALAR_TYPES

MOST_STEPS = 20_000  # nodes of one run, those of loops in every turn: what an export can take
# What the walk itself does.
_WALKED = {
    *("prim::Constant", "prim::GetAttr", "prim::SetAttr", "prim::If", "prim::Loop", "prim::RaiseException"),
    *("prim::ListConstruct", "prim::TupleConstruct", "prim::DictConstruct", "prim::isinstance"),
    *("prim::ListUnpack", "prim::TupleUnpack", "prim::TupleSlice"),
}


_NUMBERS = ("int", "float", "bool", "number")


class GraphModule(nn.Module):
    """The graph of a TorchScript module; takes its tensors in order.

    Its submodules, parameters and buffers have the names that they have there; floats that the
    graph itself holds, as frozen modules do, are parameters `constant_0`, ….

    Args:
        script: in eval mode; it is kept, and not changed.
        fixed: arguments that have one value, and need not be tensors.

    Raises:
        UnsupportedError: operators that are not read (named, with counts), an input that is no tensor, hooks.
    """

    def __init__(self, script: torch.jit.ScriptModule, fixed: Collection[str] = ()) -> None:
        super().__init__()
        modules: list[Any] = list(script.modules())
        if any(m._c._get_forward_hooks() or m._c._get_forward_pre_hooks() for m in modules):
            raise UnsupportedError(
                "hooks of a TorchScript module are not read",
                remedy="save it without hooks, or as torch.export",
            )
        method = script._c._get_method("forward")
        self.graph = method.graph.copy()
        torch._C._jit_pass_inline(self.graph)
        _refuse_unread(self.graph)
        arguments = method.schema.arguments[1:]
        defaults = [_default(argument) for argument in arguments]
        for argument in arguments:
            kind = str(argument.type)
            taken = argument.has_default_value() or argument.name in fixed
            if not taken and kind not in ("Tensor", "Optional[Tensor]"):
                raise UnsupportedError(
                    f"the TorchScript module takes an input {argument.name!r} that is no tensor",
                    got=kind,
                    remedy=(f"--input {argument.name}=NUMBER fixes it; or " if kind in _NUMBERS else "")
                    + "wrap it in a module that takes tensors, and save that",
                )
        _mirror(script, self, {})
        self.constants: dict[str, str] = {}  # value of the graph -> parameter
        for node in _nodes(self.graph):
            value = node.output().toIValue() if node.kind() == "prim::Constant" else None
            if isinstance(value, Tensor) and is_weight(value):
                name = f"constant_{len(self.constants)}"
                self.constants[node.output().debugName()] = name
                self.register_parameter(name, nn.Parameter(value.detach().clone()))
        names = [a.name if a.name.isidentifier() else f"input_{i}" for i, a in enumerate(arguments)]
        either = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [
            inspect.Parameter(name, either, default=default, annotation=str(argument.type))
            for name, default, argument in zip(names, defaults, arguments)
        ]
        self.forward = self._named(inspect.Signature(parameters))

    def _named(self, signature: inspect.Signature) -> Callable[..., Any]:
        """The forward with arguments under the names that they have in the archive."""

        def forward(*inputs: Any, **named: Any) -> Any:
            bound = signature.bind(*inputs, **named)
            bound.apply_defaults()
            return _Walk(self).run(self.graph, [self, *bound.args])

        forward.__signature__ = signature  # type: ignore[attr-defined]
        return forward


class AsScripted(nn.Module):
    """The TorchScript module as torch runs it, on a copy, so that its state stays.

    The graph is walked on the same inputs and random numbers first, which bounds what it does.

    Args:
        complete: all arguments of the script, of those that are given.
    """

    script: torch.jit.ScriptModule
    walked: GraphModule
    complete: Callable[..., tuple[Any, ...]]

    def __init__(
        self, script: torch.jit.ScriptModule, walked: GraphModule, complete: Callable[..., tuple[Any, ...]]
    ) -> None:
        super().__init__()
        kept = {"script": script, "walked": walked, "complete": complete}
        self.__dict__.update(kept)  # no submodules, which would be looked into

    def forward(self, *inputs: Tensor) -> Any:
        before = torch.get_rng_state()
        with unchanged(self.walked):
            self.walked(*(tensor.clone() for tensor in inputs))
        torch.set_rng_state(before)  # so that it takes the branches that were walked
        with torch.enable_grad(), torch.jit.optimized_execution(False):  # as the walk says: no fused forms
            results = copy.deepcopy(self.script)(*self.complete(*inputs))
        return pytree.tree_map_only(Tensor, Tensor.detach, results)


def _mirror(script: Any, into: nn.Module, known: dict[int, nn.Parameter]) -> None:
    """Submodules, parameters and buffers of `script` under their names; what is tied stays so."""
    into.__dict__["_script"] = script
    for name, tensor in script.named_parameters(recurse=False, remove_duplicate=False):
        into._parameters[name] = known.setdefault(
            id(tensor), nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
        )
    for name, tensor in script.named_buffers(recurse=False, remove_duplicate=False):
        into._buffers[name] = tensor
    for name, child in script._modules.items():
        into._modules[name] = inner = nn.Module()
        _mirror(child, inner, known)


def _default(argument: Any) -> Any:
    return argument.default_value if argument.has_default_value() else inspect.Parameter.empty


def _nodes(block: Any) -> Iterator[Any]:
    """All of a block, those of the blocks in it included."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _refuse_unread(graph: Any) -> None:
    missing: Counter[str] = Counter()
    for node in _nodes(graph):
        kind = node.kind()
        if kind in _WALKED or kind in BUILTINS or kind in OF_TENSORS:
            continue
        try:
            _operator(node)
        except Rejected:
            if not _computes_only(node):
                missing[kind] += 1
    if missing:
        raise UnsupportedError(
            "the TorchScript module holds operators that are not read",
            got=", ".join(f"{kind} ({count})" for kind, count in sorted(missing.items())),
            remedy="save a torch.export of the model that it was scripted or traced from",
        )


def _computes_only(node: Any) -> bool:
    """It is an operator on tensors, if none that is read: a branch that is not taken may hold it."""
    try:
        schema = torch._C.parse_schema(node.schema())
    except RuntimeError:
        return False
    full = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
    kinds = [str(argument.type) for argument in schema.arguments]
    touches = schema.is_mutable or any("str" in kind for kind in kinds)  # such as the name of a file
    return schema.name.startswith("aten::") and torch._C._dispatch_has_kernel(full) and not touches


def _operator(node: Any) -> torch._ops.OpOverload:
    """The operator of a node, one of those that a `.pt2` may call.

    Raises:
        Rejected: it is none.
    """
    try:
        schema = torch._C.parse_schema(node.schema())
    except RuntimeError as error:  # of what has no schema: control flow, objects
        raise Rejected(f"{node.kind()} is no operator") from error
    namespace, _, name = schema.name.partition("::")
    overload = schema.overload_name or "default"
    operator_name(f"torch.ops.{namespace}.{name}.{overload}")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


class _Walk:
    """One run of the graph.

    Args:
        of: the module whose attributes it reads.
    """

    def __init__(self, of: GraphModule) -> None:
        self._of, self._steps = of, 0
        self._values: dict[str, Any] = {}

    def run(self, block: Any, inputs: list[Any]) -> Any:
        """The results of a block: of the graph itself its one output, of a block in it a list."""
        for value, given in zip(block.inputs(), inputs):
            self._values[value.debugName()] = given
        for node in block.nodes():
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise UnsupportedError(
                    "the TorchScript module runs too long to be unrolled", expected=f"{MOST_STEPS} operations"
                )
            self._set(node, self._results(node))
        results = [self._values[value.debugName()] for value in block.outputs()]
        return results[0] if block is self._of.graph else results

    def _set(self, node: Any, results: Any) -> None:
        outputs = list(node.outputs())
        if len(outputs) == 1:
            results = (results,)
        for output, value in zip(outputs, results if outputs else ()):
            self._values[output.debugName()] = value

    def _results(self, node: Any) -> Any:
        """The node's value; where it has several outputs or none, their values."""
        kind = node.kind()
        if kind == "prim::Constant":
            name = node.output().debugName()
            stored = self._of.constants.get(name)
            return node.output().toIValue() if stored is None else getattr(self._of, stored)
        given = [self._values[value.debugName()] for value in node.inputs()]
        match kind:
            case "prim::GetAttr":
                return self._attribute(given[0], node.s("name"))
            case "prim::SetAttr":
                return self._assign(given[0], node.s("name"), given[1])
            case "prim::If":
                yes, no = node.blocks()
                chosen = self.run(yes if bool(given[0]) else no, [])
                return chosen[0] if node.outputsSize() == 1 else chosen
            case "prim::Loop":
                return self._loop(node, *given)
            case "prim::RaiseException":
                raise ValueError(str(given[0]))
            case "prim::ListConstruct":
                return given
            case "prim::TupleConstruct":
                return tuple(given)
            case "prim::DictConstruct":
                return dict(zip(given[::2], given[1::2]))
            case "prim::ListUnpack" | "prim::TupleUnpack":
                return given[0][0] if node.outputsSize() == 1 else given[0]
            case "prim::TupleSlice":
                return given[0][node.i("beg") : node.i("end")]
            case "prim::isinstance":
                raise UnsupportedError("a type test of a TorchScript module is not read")
        return self._computed(node, kind, given)

    def _loop(self, node: Any, turns: int, go: bool, *carried: Any) -> Any:
        (body,) = node.blocks()
        turn, values = 0, list(carried)
        while turn < turns and bool(go):
            go, *values = self.run(body, [turn, *values])
            turn += 1
        return values[0] if node.outputsSize() == 1 else values

    def _attribute(self, owner: nn.Module, name: str) -> Any:
        for table in (owner._parameters, owner._buffers, owner._modules):
            if name in table:
                return table[name]
        return owner.__dict__["_script"]._c.getattr(name)

    def _assign(self, owner: nn.Module, name: str, value: Any) -> None:
        """State: a buffer of the same form gets new numbers.

        Raises:
            UnsupportedError: another attribute would change, which the next run would have to know.
        """
        held = self._attribute(owner, name)
        if held is value:
            return
        fits = isinstance(held, Tensor) and isinstance(value, Tensor) and name in owner._buffers
        if fits and held.shape == value.shape and held.dtype == value.dtype:
            held.copy_(value)
        elif isinstance(held, Tensor) or isinstance(value, Tensor) or held != value:
            raise UnsupportedError(
                f"the TorchScript module changes its attribute {name!r} while it runs",
                expected="state in buffers whose shape stays",
                remedy="make it an input and an output of the module",
            )

    def _computed(self, node: Any, kind: str, given: list[Any]) -> Any:
        tensors = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(given))
        if kind in OF_TENSORS and isinstance(given[0], Tensor):
            return OF_TENSORS[kind](*given)
        if not tensors and kind in BUILTINS:
            return BUILTINS[kind](*given)
        try:
            operator = _operator(node)
        except Rejected as error:
            if kind in BUILTINS:  # of lists and dicts of tensors
                return BUILTINS[kind](*given)
            raise UnsupportedError(
                "the TorchScript module runs an operator that is not read", got=f"{kind}: {error.reason}"
            ) from error
        arguments = operator._schema.arguments
        fitting = {a.name: _fitted(str(a.real_type), value) for a, value in zip(arguments, given)}
        named = {a.name: fitting.pop(a.name) for a in arguments if a.kwarg_only and a.name in fitting}
        return operator(*fitting.values(), **named)


def _fitted(kind: str, value: Any) -> Any:
    """A value as the operator takes it: TorchScript numbers types and layouts; all is on the CPU."""
    kind = kind.removeprefix("Optional[").removesuffix("]")
    if value is None:
        return None
    match kind:
        case "ScalarType":
            return SCALAR_TYPES[value]
        case "MemoryFormat":
            return MEMORY_FORMATS[value]
        case "Layout":
            if value != 0:
                raise UnsupportedError("the TorchScript module makes a tensor that is not dense")
            return torch.strided
        case "Device":
            return torch.device("cpu")
        case "Tensor" if not isinstance(value, Tensor):
            return BUILTINS["aten::tensor"](value)
    return value
