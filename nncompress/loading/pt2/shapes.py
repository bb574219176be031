"""A graph of a `.pt2`, run once on tensors without memory before it is run on real ones.

The sizes that a file states are claims. Here every operator's own shape rule is asked, on the shapes that the
weights have: what does not fit is refused, and so is what would take more memory than there is. Two operators
are looked at more closely, since their kernels trust what they are given.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nncompress.ir.graph.normal_form.bags import counts_up
from nncompress.ir.torch_logs import unlogged
from nncompress.memory import most_bytes

aten = torch.ops.aten
_UNKNOWN_HERE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
    GuardOnDataDependentSymNode,
)
_ENUMS = {"ScalarType": torch.dtype, "Layout": torch.layout, "MemoryFormat": torch.memory_format}
_MOST_PIECES = 10_000  # of one tensor; the longest in practice are the steps of a sequence
_MOST_SIZE = 2**31  # of one dim of an input, whose hint the file states


class Unfit(ValueError):
    """The graph cannot run: shapes that do not fit, or more memory than there is.

    Attributes:
        reason: in one line; torch.fx adds more to the error's own text.
        remedy: what to do about it.
    """

    def __init__(self, reason: str, remedy: str = "export and save the model again") -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason)


def check_shapes(program: ExportedProgram) -> None:
    """Run the graph on the shapes of its weights and the sizes that it was exported with, without memory.

    Raises:
        Unfit: it does not run, or an operator's result would not fit this machine's memory.
    """
    tensors = {**program.state_dict, **program.constants}
    stored = {
        **program.graph_signature.inputs_to_parameters,
        **program.graph_signature.inputs_to_buffers,
        **program.graph_signature.inputs_to_lifted_tensor_constants,
    }
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            _check_enums(node)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    arguments: list[Any] = []
    with unlogged(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for node in program.graph.nodes:
            if node.op != "placeholder":
                continue
            value = tensors[stored[node.name]] if node.name in stored else node.meta.get("val")
            arguments.append(_without_memory(value, node.name, mode))
        with mode, _FewResults(), torch.no_grad():
            try:
                _Checked(program.graph_module).run(*arguments, enable_io_processing=False)
            except _UNKNOWN_HERE:  # sizes that depend on data: known when it runs
                return


def _without_memory(value: Any, name: str, mode: FakeTensorMode) -> Any:
    if not isinstance(value, Tensor):
        return value
    shape = [_hint(size) for size in value.shape]
    if max(shape, default=0) > _MOST_SIZE:
        raise Unfit(f"the input {name} has the shape {'×'.join(map(str, shape))}")
    _check_memory(shape, value.dtype, name)
    with mode:
        return torch.empty(shape, dtype=value.dtype)


def _hint(size: Any) -> int:
    """The size that the graph was exported with, where it is symbolic."""
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else 2
    return int(hint)


def _check_memory(shape: Any, dtype: torch.dtype, name: str) -> None:
    needed, most = math.prod(shape) * dtype.itemsize, most_bytes()
    if needed > most:
        raise Unfit(
            f"{name} of shape {'×'.join(map(str, shape))} takes {needed / 1e9:.3g} GB, "
            f"where a tensor may have {most / 1e9:.3g} GB: a quarter of this machine's memory"
        )


def _check_enums(node: fx.Node) -> None:
    """Refuse a number where an operator takes a dtype, layout or memory format: no kernel checks it."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    given = _by_name(schema, node.args, node.kwargs)
    for argument in schema.arguments:
        kind = _ENUMS.get(str(argument.real_type).removeprefix("Optional[").removesuffix("]"))
        value = given.get(argument.name)
        default = argument.default_value if argument.has_default_value() else None
        if kind is not None and value is not None and value is not default and not isinstance(value, kind):
            raise Unfit(f"{node.name}: {argument.name} is {value!r:.80}, which is no {kind.__name__}")


class _FewResults(TorchDispatchMode):
    """Refuses an op, also one inside another, that cuts a tensor into more pieces than any model does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _check_pieces(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _check_pieces(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Of the ops that cut one tensor up into a list."""
    schema = getattr(operator, "_schema", None)
    if schema is None or [str(each.type) for each in schema.returns] != ["List[Tensor]"]:
        return
    given = _by_name(schema, args, kwargs)
    x, dim, step = given.get("self"), given.get("dim", 0), given.get("split_size", 1)
    if not isinstance(x, Tensor) or not isinstance(dim, int) or not -x.dim() <= dim < x.dim():
        return  # which the op itself refuses, or it gives back as many tensors as it got
    pieces, chunks = given.get("sections"), given.get("chunks", 2**63)
    if pieces is None and isinstance(step, int) and isinstance(chunks, int):
        pieces = min(chunks, _hint(x.shape[dim]) // max(step, 1))
    if isinstance(pieces, int) and pieces > _MOST_PIECES:
        raise Unfit(f"{schema.name} would cut a tensor into {pieces} pieces, where {_MOST_PIECES} are read")


class _Checked(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function":
            _check_pieces(n.target, *self.fetch_args_kwargs_from_env(n))
            try:
                result = super().run_node(n)
            except _UNKNOWN_HERE:
                raise
            except Exception as error:  # every shape rule refuses in its own way
                reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
                raise Unfit(f"{n.name} ({n.target}) cannot run: {reason[:200]}") from error
            if hasattr(n.target, "_schema"):
                _check_trusting(n, n.target._schema, *self.fetch_args_kwargs_from_env(n))
        else:
            result = super().run_node(n)
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape):
                _check_memory(value.shape, value.dtype, n.name)
        return result


def _check_trusting(
    node: fx.Node, schema: torch.FunctionSchema, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Of the operators whose kernels check less than their shape rules, which have passed, say."""
    given = _by_name(schema, args, kwargs)
    match schema.name.removeprefix("aten::"):
        case "embedding_bag" | "_embedding_bag":  # it reads where the offsets point
            if not counts_up(_by_name(schema, node.args, node.kwargs)["offsets"]):
                raise Unfit(
                    f"{node.name}: its kernel reads wherever offsets point, and these are no regular steps",
                    remedy="give nncompress.load the module and tensors, which says bags as sums of rows: "
                    "nncompress.load(module, input=(ids, offsets)); or export it with ids [batch, n] alone",
                )
        case "_weight_norm" | "_weight_norm_interface":
            v, dim = given["v"], given["dim"]
            expected = [1] * v.dim()
            if -v.dim() <= dim < v.dim():
                expected[dim] = v.shape[dim]
            if math.prod(given["g"].shape) != math.prod(expected):
                raise Unfit(f"{node.name}: {list(given['g'].shape)} norms of a weight {list(v.shape)}")
        case (
            "native_batch_norm"
            | "_native_batch_norm_legit"
            | "_native_batch_norm_legit_no_training"
            | ("_native_batch_norm_legit_functional" | "_batch_norm_no_update" | "_batch_norm_with_update")
        ):
            x = given["input"]
            channels = x.shape[1] if x.dim() > 1 else 0
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = given.get(name)
                if isinstance(value, Tensor) and list(value.shape) != [channels]:
                    raise Unfit(f"{node.name}: {name} of shape {list(value.shape)} for {channels} channels")


def _by_name(schema: torch.FunctionSchema, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument, however it was given, or its default."""
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return defaults | dict(zip((a.name for a in schema.arguments), args)) | dict(kwargs)
